"""
Do what a Docker build does without Docker: a copied interpreter, the agent's folder, venvs on top.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path

from packaging.requirements import Requirement

import otel_async_sqla_agent
from integration.processes import BIN, ROOT, environ

AGENT = "otel-async-sqla-agent"
FOLDER = "/opt/otel-async-sqla"
DOCKERFILE = ROOT / "docker/Dockerfile"
SQLALCHEMY = ("sqlalchemy[asyncio]", "aiosqlite")
OPENTELEMETRY = ("opentelemetry-distro", "opentelemetry-exporter-otlp")
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_NOT_COPIED = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter", "config-*")


class Image:
    """
    What docker/Dockerfile makes, below a folder of this machine.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER[1:]
        self.exposed = self.folder / "pythonpath"
        self.python = copy_interpreter(root / "python")
        wheels = root / "wheels"
        wheels.mkdir()
        for name in closure(f"{AGENT}[distro]"):
            pack(name, wheels)
        build, final = run_commands(DOCKERFILE)
        self.output = [self._run(command, BIN, wheels) for command in build]
        self.output += [self._run(command, self.python.parent, wheels) for command in final]
        self.sitecustomize = root / f"python/lib/{PYTHON}/sitecustomize.py"

    def _run(self, command: str, python: Path, wheels: Path) -> str:
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
        result = subprocess.run(
            ["sh", "-c", command.replace(FOLDER, str(self.folder))],
            cwd=self.root,
            env=environ(**pip, PATH=f"{python}:{os.environ['PATH']}"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def venv(self, name: str, *distributions: str) -> Venv:
        """
        Make an application's venv with these distributions, and what they need, in it.
        """
        folder = self.root / name
        subprocess.run([self.python, "-I", "-m", "venv", "--without-pip", folder], check=True, timeout=60)
        return Venv(folder, *distributions)

    @contextmanager
    def without_sitecustomize(self) -> Iterator[None]:
        """
        Leave the interpreter's standard library as it was, for a while.
        """
        text = self.sitecustomize.read_text()
        self.sitecustomize.unlink()
        try:
            yield
        finally:
            self.sitecustomize.write_text(text)


class Venv:
    """
    A venv with distributions of the tests' own environment in it.
    """

    def __init__(self, folder: Path, *distributions: str) -> None:
        self.python = str(folder / "bin/python")
        self.site_packages = folder / f"lib/{PYTHON}/site-packages"
        for name in set().union(*map(closure, distributions)):
            link(name, self.site_packages)


def copy_interpreter(target: Path) -> Path:
    """
    Copy the interpreter and its standard library, without what is installed, and return the executable.
    """
    (target / "bin").mkdir(parents=True)
    base = Path(sys.base_prefix)
    shutil.copy(base / "bin" / PYTHON, target / "bin")
    (target / "bin/python").symlink_to(PYTHON)
    shutil.copytree(sysconfig.get_path("stdlib"), target / "lib" / PYTHON, ignore=_NOT_COPIED)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy(library, target / "lib")
    return target / "bin/python"


def run_commands(dockerfile: Path) -> list[list[str]]:
    """
    Return the RUN commands of a Dockerfile, stage by stage.
    """
    stages: list[list[str]] = []
    for line in dockerfile.read_text().replace("\\\n", "").splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        elif instruction == "RUN":
            stages[-1].append(rest)
    return stages


@functools.cache
def closure(wanted: str) -> frozenset[str]:
    """
    Return what pip would install for a requirement, as far as it is installed here.
    """
    names: set[str] = set()
    waiting = [Requirement(wanted)]
    while waiting:
        requirement = waiting.pop()
        key = str(requirement.name).lower()
        if key in names and not requirement.extras:
            continue
        names.add(key)
        for line in distribution(key).requires or ():
            needed = Requirement(line)
            extras = ["", *requirement.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return frozenset(names)


def files(name: str) -> Iterator[tuple[Path, Path]]:
    """
    Return the installed files of a distribution, and where they belong in a site-packages folder.
    """
    if name == AGENT:  # may be installed for editing
        package = Path(otel_async_sqla_agent.__file__).parent
        metadata = next(Path(str(distribution(AGENT).locate_file(""))).glob("otel_async_sqla_agent-*.dist-info"))
        for folder in (package, metadata):
            yield from ((path, path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file())
        return
    for file in distribution(name).files or ():
        path = Path(str(file.locate()))
        if ".." not in file.parts and path.is_file() and path.suffix != ".pyc":
            yield path, Path(*file.parts)
            # Only some installers list the bytecode, and without it each venv would compile SQLAlchemy anew.
            cached = Path(cache_from_source(str(path)))
            if path.suffix == ".py" and cached.is_file():
                yield cached, Path(*file.parts).parent / "__pycache__" / cached.name


def link(name: str, site_packages: Path) -> None:
    """
    Install a distribution by links to its files.
    """
    for source, place in files(name):
        target = site_packages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def pack(name: str, folder: Path) -> None:
    """
    Make a wheel of an installed distribution.
    """
    version = distribution(name).version
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
        for source, place in files(name):
            if source.suffix != ".pyc" and place.name not in ("direct_url.json", "INSTALLER", "REQUESTED"):
                wheel.write(source, str(place))

"""
Write the files by which every Python process of an environment, or of an image, starts the agent; and remove them.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from ._folder import EXPOSED

_PACKAGE = "otel_async_sqla_agent"
_HOOK = "_otel_async_sqla_start"
_WRITTEN = "Written by `otel-async-sqla-agent preinstall`; its option --uninstall removes this file."
_MARK = f"# {_WRITTEN}\n"
_INSTALL = "python -m pip install --target /opt/otel-async-sqla 'otel-async-sqla-agent[distro]'"

# These files outlive the package, and are read by whatever Python finds them: old syntax, few imports, no failure.
_START = """\
import os
import sys


def start():
    if os.environ.get("OTEL_ASYNC_SQLA_MODE") and sys.version_info[:2] == {python}:
        try:
            from otel_async_sqla_agent._boot import start
        except ImportError:  # uninstalled
            return
        start()
"""
_PTH = f"""\
import os; os.environ.get("OTEL_ASYNC_SQLA_MODE") and __import__("{_HOOK}").start()
"""
# From Python 3.15 it stands in for the line above, and has no condition of its own (PEP 829).
_START_FILE = f"{_HOOK}:start\n"
_SITECUSTOMIZE = """\
import os
import sys

FOLDER = {folder}


def _run_next():
    # This file hides the next sitecustomize on the path, such as the application's own.
    here = os.path.dirname(os.path.abspath(__file__))
    path = [os.path.abspath(entry) for entry in sys.path]
    behind = sys.path[path.index(here) + 1 :] if here in path else []
    for finder in sys.meta_path:
        spec = finder.find_spec("sitecustomize", behind)
        if spec is not None and spec.loader is not None:
            from importlib.util import module_from_spec

            sys.modules["sitecustomize"] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return


def _start():
    if os.environ.get("OTEL_ASYNC_SQLA_MODE") and sys.version_info[:2] == {python} and os.path.isdir(FOLDER):
        if FOLDER not in sys.path:
            sys.path.append(FOLDER)
        try:
            from otel_async_sqla_agent._boot import start
        except ImportError:  # uninstalled
            return
        start()


try:
    _run_next()
finally:
    _start()
"""
# Without its requirements: launchers up to 0.49b0 ask pkg_resources, which would not let the program start where they
# are not met. We compare them ourselves, when it is time. The extra is what launchers look for.
_METADATA = f"""\
Metadata-Version: 2.1
Name: otel-async-sqla-agent
Version: {{version}}
Summary: {_WRITTEN}
Provides-Extra: instruments
Requires-Dist: sqlalchemy>=1.4; extra == "instruments"
"""
_OWN_FOLDER = "os.path.dirname(os.path.abspath(__file__))"


class PreinstallError(Exception):
    """
    Say why the files can't be written, and what helps.
    """


class StartFile(NamedTuple):
    """
    One file, or symbolic link, that `preinstall` writes.
    """

    path: Path
    content: str
    """
    The text, or where the link leads.
    """
    link: bool = False

    def is_written(self) -> bool:
        """
        Tell whether it is there as it should be.
        """
        return self._present() == self.content

    def is_foreign(self) -> bool:
        """
        Tell whether something that is not ours stands in the place.
        """
        present = self._present()
        if present is None or present == self.content:
            return False
        return not (self.path.is_symlink() if self.link else _WRITTEN in present)

    def write(self) -> None:
        """
        Put it in place, whole or not at all.
        """
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.link:
            temporary.symlink_to(self.content)
        else:
            temporary.write_text(self.content, encoding="utf-8")
        temporary.replace(self.path)

    def remove(self) -> None:
        """
        Take it away, and its folder if it was the last in it.
        """
        self.path.unlink()
        try:
            self.path.parent.rmdir()
        except OSError:  # there is something else in it
            pass

    def _present(self) -> str | None:
        """
        Return what stands in the place, as `content` would say it: nothing is None, what is of another kind is empty.
        """
        if not os.path.lexists(self.path):
            return None
        if self.link:
            return os.readlink(self.path) if self.path.is_symlink() else ""
        return self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""


def files_of_the_environment() -> list[StartFile]:
    """
    Return the files for the environment whose site-packages the agent stands in.

    Raises:
        PreinstallError: It stands elsewhere.
    """
    folder = _own_site_packages()
    python = tuple(sys.version_info[:2])
    return [
        StartFile(folder / f"{_HOOK}.py", _MARK + _START.format(python=python)),
        StartFile(folder / f"{_PACKAGE}.pth", _MARK + _PTH),
        StartFile(folder / f"{_PACKAGE}.start", _START_FILE),
    ]


def files_for_venvs() -> list[StartFile]:
    """
    Return the files by which every venv of this interpreter finds the agent in a folder of its own.

    One is for the interpreter itself; the others make a folder for PYTHONPATH, which exposes our package alone.

    Raises:
        PreinstallError: The agent does not stand in a folder of its own.
    """
    package = Path(__file__).resolve().parent
    folder = package.parent
    metadata = next(folder.glob(f"{_PACKAGE}-*.dist-info"), None)
    if metadata is None or folder.name in ("site-packages", "dist-packages") or folder in _site_packages():
        raise PreinstallError(
            f"the agent stands in {folder}, all of which would become visible to the applications; install it into a "
            f"folder of its own, {_INSTALL}, and run this command with PYTHONPATH=/opt/otel-async-sqla"
        )
    exposed = folder / EXPOSED
    exposed_metadata = exposed / f"{_PACKAGE}.dist-info"
    python = tuple(sys.version_info[:2])
    version = Distribution.at(metadata).version
    return [
        StartFile(exposed / package.name, f"../{package.name}", link=True),
        StartFile(exposed_metadata / "METADATA", _METADATA.format(version=version)),
        StartFile(exposed_metadata / "entry_points.txt", _MARK + (metadata / "entry_points.txt").read_text()),
        StartFile(exposed / "sitecustomize.py", _MARK + _SITECUSTOMIZE.format(folder=_OWN_FOLDER, python=python)),
        StartFile(
            Path(sysconfig.get_path("stdlib")) / "sitecustomize.py",
            _MARK + _SITECUSTOMIZE.format(folder=repr(str(exposed)), python=python),
        ),
    ]


def write(files: Sequence[StartFile], *, dry_run: bool) -> Iterator[str]:
    """
    Write the files that are not there yet, and say of each what was done.

    Raises:
        PreinstallError: A place is taken by something else, before anything is written; or a file can't be written.
    """
    for file in files:
        if file.is_foreign():
            raise PreinstallError(
                f"{file.path} is not ours and stays as it is; remove it, or move it into the site-packages of the "
                "application, where it is still run"
            )
    for file in files:
        if file.is_written():
            yield f"unchanged {file.path}"
        elif dry_run:
            yield f"would write {file.path}"
        else:
            with _permitted(file):
                file.write()
            yield f"wrote {file.path}"


def remove(files: Sequence[StartFile], *, dry_run: bool) -> Iterator[str]:
    """
    Remove the files, the last first, and say of each what was done; what is not ours stays.

    Raises:
        PreinstallError: A file can't be removed.
    """
    for file in reversed(files):
        if file.is_foreign():
            yield f"left {file.path}, which is not ours"
        elif dry_run and os.path.lexists(file.path):
            yield f"would remove {file.path}"
        elif os.path.lexists(file.path):
            with _permitted(file):
                file.remove()
            yield f"removed {file.path}"


@contextmanager
def _permitted(file: StartFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PreinstallError(
            f"{file.path} can't be changed: {error.strerror}; run this as the user who owns {file.path.parent}, in a "
            "Dockerfile before USER"
        ) from error


def _site_packages() -> list[Path]:
    return [Path(folder).resolve() for folder in [*site.getsitepackages(), site.getusersitepackages()]]


def _own_site_packages() -> Path:
    candidates = _site_packages()
    for distribution in distributions(name="otel-async-sqla-agent"):
        folder = Path(str(distribution.locate_file(""))).resolve()
        if folder in candidates:
            return folder
    raise PreinstallError(
        f"the agent stands in {Path(__file__).resolve().parent.parent}, which is no site-packages folder of "
        f"{sys.executable}; install it there with pip, or use --for-venvs"
    )

"""
Images in which the agent starts without the launcher, as docker/Dockerfile makes them.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import distributions, version
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.conftest import Receiver
from integration.images import AGENT, FOLDER, OPENTELEMETRY, SQLALCHEMY, Image, Venv, link
from integration.processes import ROOT, complaints, environ, run
from integration.test_launcher import MEMORY, PROGRAM, SILENT, spans_of

ON = {"OTEL_ASYNC_SQLA_MODE": "auto", **SILENT}
LAUNCHER = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
# What a process has of the agent and of OpenTelemetry.
STATE = """
import sys
print(sorted({name.split(".")[0] for name in sys.modules} & {"otel_async_sqla_agent", "opentelemetry"}))
print([entry for entry in sys.path if "otel-async-sqla" in entry])
"""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def venv(image: Image) -> Callable[..., Venv]:
    """
    Return what makes a venv of the image, once for each set of distributions.
    """

    @functools.cache
    def make(*distributions: str) -> Venv:
        return image.venv("-".join(["venv", *distributions]), *SQLALCHEMY, *distributions)

    return make


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_dockerfile(image: Image) -> None:
    """
    What the Dockerfile runs prints every file that it writes.
    """
    assert [
        f"wrote {image.exposed / 'otel_async_sqla_agent'}",
        f"wrote {image.exposed / 'otel_async_sqla_agent.dist-info/METADATA'}",
        f"wrote {image.exposed / 'otel_async_sqla_agent.dist-info/entry_points.txt'}",
        f"wrote {image.exposed / 'sitecustomize.py'}",
        f"wrote {image.sitecustomize}",
    ] == image.output[-1].splitlines()
    # The user of the image can't write them.
    assert list(image.sitecustomize.parent.glob("__pycache__/sitecustomize.*.pyc"))
    assert list((image.folder / "otel_async_sqla_agent/__pycache__").glob("_boot.*.pyc"))


COMMANDS = {
    "program": "{python} program.py",
    "isolated": "{python} -I program.py",
    "no-environment": "{python} -E program.py",
    "module": "{python} -m program",
    "console-script": "./script",
    "zipapp": "{python} program.pyz",
    "subprocess": "{python} run.py",
    "spawned": "{python} spawn.py",
}
RUN = """
import subprocess, sys
subprocess.run([sys.executable, "-I", "program.py", *sys.argv[1:]], check=True)
"""
SPAWN = """
import multiprocessing, runpy, sys
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=runpy.run_path, args=("program.py",))
    process.start()
    process.join()
"""


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_launcher(command: str, program: Path, venv: Callable[..., Venv], receiver: Receiver) -> None:
    """
    Whatever starts a program of a venv that has neither the agent nor OpenTelemetry, its spans arrive.
    """
    python = venv().python
    (program.parent / "script").write_text(f"#!{python}\n{PROGRAM}")
    (program.parent / "script").chmod(0o755)
    with zipfile.ZipFile(program.parent / "program.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)
    (program.parent / "run.py").write_text(RUN)
    (program.parent / "spawn.py").write_text(SPAWN)
    # The derived image has a PYTHONPATH of its own.
    result = run(
        *["sh", "-c", f"{command.format(python=python)} {MEMORY}"],
        cwd=program.parent,
        PYTHONPATH="/nowhere",
        OTEL_SERVICE_NAME="shop",
        **ON,
        **receiver.environ,
    )
    assert ([], 0) == (complaints(result), result.returncode)
    assert "result 42" in result.stdout
    assert [("shop", "connect", b""), ("shop", "SELECT", b"")] == [
        (span.service, span.name, span.parent_id) for span in receiver.spans()
    ]


SERVERS = {
    "uvicorn": "-m uvicorn app:app --uds socket --workers 2 --timeout-worker-healthcheck 60",
    "gunicorn": "-m gunicorn app:app --bind unix:socket --workers 2 --worker-class uvicorn_worker.UvicornWorker",
}


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_servers_workers(command: str, program: Path, venv: Callable[..., Venv], receiver: Receiver) -> None:
    """
    The workers of a server make spans as well, whether they are spawned or forked.
    """
    (program.parent / "app.py").write_text(SERVER)
    with subprocess.Popen(
        [venv("gunicorn", "uvicorn", "uvicorn-worker").python, *command.split()],
        cwd=program.parent,
        env=environ(**ON, **receiver.environ, OTEL_BSP_SCHEDULE_DELAY="50"),
        stderr=subprocess.DEVNULL,
    ) as server:
        spans = receiver.wait_for(4)
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    assert ["SELECT", "SELECT", "connect", "connect"] == sorted(span.name for span in spans)


SERVER = """
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine("sqlite+aiosqlite://")

async def app(scope, receive, send):
    await receive()
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await engine.dispose()
    await send({"type": "lifespan.shutdown.complete"})
"""


class Application(NamedTuple):
    """
    What an application has, and what it sees of it with the agent in the image.
    """

    distributions: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    """
    What pip installs besides.
    """
    relabelled: bool = False
    """
    Whether its OpenTelemetry says that it is newer than it is.
    """
    warning: str = ""
    """
    What does not fit; empty if there are spans.
    """
    program: str = ""
    printed: str = ""


APPLICATIONS = {
    "old-api": Application(
        pip=("opentelemetry-api==1.27.0",),
        warning="the application has opentelemetry-api 1.27.0, but otel-async-sqla-agent {agent} wants "
        "opentelemetry-api>=1.33; ",
        program="import importlib.metadata as m, opentelemetry.trace; print(m.version('opentelemetry-api'))",
        printed="1.27.0",
    ),
    "protobuf-4": Application(
        pip=("protobuf==4.25.8",),
        warning="the application has protobuf 4.25.8, but ",
        program="import google.protobuf; print(google.protobuf.__version__)",
        printed="4.25.8",
    ),
    "no-opentelemetry": Application(
        program="import opentelemetry.sdk.trace; print(opentelemetry.sdk.trace.__file__)",
        printed="{folder}/opentelemetry/sdk/trace/__init__.py",
    ),
    "fitting-api": Application(
        distributions=("opentelemetry-api",),
        program="import opentelemetry.sdk.trace; print(opentelemetry.sdk.trace.__file__)",
        printed="{folder}/opentelemetry/sdk/trace/__init__.py",
    ),
    "newer-opentelemetry": Application(
        distributions=OPENTELEMETRY,
        relabelled=True,
        program="import opentelemetry.sdk.trace; print(opentelemetry.sdk.trace.__file__)",
        printed="{venv}/opentelemetry/sdk/trace/__init__.py",
    ),
    "older-wrapt": Application(
        pip=("wrapt==1.14.2",),
        program="import wrapt; print(wrapt.__version__)",
        printed="1.14.2",
    ),
}


@pytest.fixture(scope="session", params=APPLICATIONS)
def application(request: pytest.FixtureRequest, image: Image) -> tuple[Application, Venv]:
    application = APPLICATIONS[request.param]
    venv = image.venv(request.param, *SQLALCHEMY, *application.distributions)
    if application.pip:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(venv.site_packages), *application.pip]
        subprocess.run(pip, check=True, timeout=120)
    for metadata in venv.site_packages.glob("opentelemetry_*.dist-info/METADATA") if application.relabelled else ():
        text = re.sub(r"^Version: (\d+)\.\d+", r"Version: \1.999", metadata.read_text(), flags=re.MULTILINE)
        metadata.unlink()  # a link
        metadata.write_text(text)
    return application, venv


@pytest.mark.parametrize("route", ["standard-library", "pythonpath"])
def test_versions_never_mix(
    route: str, application: tuple[Application, Venv], image: Image, program: Path, receiver: Receiver
) -> None:
    """
    An application gets the agent's dependencies only where they fit its own packages, which it keeps in any case.
    """
    expected, venv = application
    program.write_text(f"{PROGRAM}\n{expected.program}\n")
    places = {"agent": version(AGENT), "folder": image.folder, "venv": venv.site_packages}
    with image.without_sitecustomize() if route == "pythonpath" else nullcontext():
        result = run(
            *[venv.python, str(program), MEMORY],
            PYTHONPATH=str(image.exposed) if route == "pythonpath" else "",
            **ON,
            **receiver.environ,
        )
    assert ([], 0) == (complaints(result), result.returncode)
    *others, result_line, printed = result.stdout.splitlines()
    assert ("result 42", expected.printed.format(**places)) == (result_line, printed)
    warnings = [line for line in others if line.startswith("WARNING")]
    if expected.warning:
        [warning] = warnings
        start = "WARNING otel_async_sqla_agent otel-async-sqla-agent stays off: "
        assert warning.startswith(start + expected.warning.format(**places))
        assert [] == spans_of(receiver)
    else:
        assert [] == warnings
        assert ["connect", "SELECT"] == spans_of(receiver)


def test_launcher_of_the_application(
    image: Image, program: Path, venv: Callable[..., Venv], receiver: Receiver
) -> None:
    """
    Under the application's own launcher, whose sitecustomize hides ours, the agent comes by PYTHONPATH.
    """
    command = [venv(*OPENTELEMETRY).python, "-c", LAUNCHER, venv(*OPENTELEMETRY).python, str(program), MEMORY]
    result = run(*command, PYTHONPATH=str(image.exposed), **ON, **receiver.environ)
    assert ([], 0) == (complaints(result), result.returncode)
    assert ["connect", "SELECT"] == spans_of(receiver)


def test_requirements_are_not_exposed(image: Image) -> None:
    """
    Old launchers refuse to start a program whose packages do not meet what a visible distribution requires.
    """
    [agent] = distributions(name=AGENT, path=[str(image.exposed)])
    assert version(AGENT) == agent.version
    assert ["instruments"] == [re.search(r'extra == "(.*)"', line)[1] for line in agent.requires]
    [installed] = distributions(name=AGENT, path=[str(image.folder)])
    assert {(item.group, item.value) for item in installed.entry_points} == {
        (item.group, item.value) for item in agent.entry_points
    }


@pytest.mark.parametrize("example", ["pod", "operator"])
def test_kubernetes(
    example: str, image: Image, program: Path, venv: Callable[..., Venv], receiver: Receiver, tmp_path: Path
) -> None:
    """
    An example's init container brings the folder into a pod whose image knows nothing of it.

    OpenTelemetry's Operator puts its bundle around the pod's PYTHONPATH, and then the bundle's packages are used.
    """
    text = (ROOT / f"examples/kubernetes/{example}.yaml").read_text()
    [command] = re.findall(r"command: (.*)", text)
    [path] = re.findall(r"name: PYTHONPATH, value: (.*)}", text)
    volume = tmp_path / "agent"
    volume.mkdir()
    places = {f"{FOLDER}/.": f"{image.folder}/.", "/agent": str(volume)}
    run(*(places.get(argument, argument) for argument in json.loads(command)))
    packages, path = volume, path.replace("/agent", str(volume))
    if example == "operator":
        packages = venv(*OPENTELEMETRY).site_packages
        path = f"{packages}/opentelemetry/instrumentation/auto_instrumentation:{path}:{packages}"
    program.write_text(f"{PROGRAM}\nimport opentelemetry.sdk.trace as t; print(t.__file__)")
    with image.without_sitecustomize():
        result = run(venv().python, str(program), MEMORY, PYTHONPATH=path, **ON, **receiver.environ)
    assert ([], 0) == (complaints(result), result.returncode)
    assert f"{packages}/opentelemetry/sdk/trace/__init__.py" == result.stdout.splitlines()[-1]
    assert ["connect", "SELECT"] == spans_of(receiver)


@pytest.mark.parametrize("mode", [None, "", "off"], ids=["absent", "empty", "off"])
def test_gate(mode: str | None, image: Image, program: Path, venv: Callable[..., Venv]) -> None:
    """
    Without OTEL_ASYNC_SQLA_MODE there is nothing of the agent in a process.
    """
    program.write_text(PROGRAM + STATE)
    variables = {} if mode is None else {"OTEL_ASYNC_SQLA_MODE": mode}
    result = run(venv().python, str(program), MEMORY, **variables)
    assert ("", "result 42") == (result.stderr, result.stdout.splitlines()[0])
    visible = [str(image.exposed)] if mode else []
    assert [str(["otel_async_sqla_agent"] if mode else []), str(visible)] == result.stdout.splitlines()[1:]


@pytest.mark.parametrize("broken", ["package-gone", "folder-gone", "other-python"])
@pytest.mark.parametrize("route", ["standard-library", "pythonpath"])
def test_left_behind(broken: str, route: str, image: Image, program: Path, venv: Callable[..., Venv]) -> None:
    """
    Files left behind do nothing and say nothing once the package is gone, and on another version of Python.
    """
    exposed = program.parent / "pythonpath"
    if broken != "folder-gone":
        exposed.mkdir()
        shutil.copy(image.exposed / "sitecustomize.py", exposed)
    text = image.sitecustomize.read_text().replace(str(image.exposed), str(exposed))
    if broken == "other-python":
        link(AGENT, exposed)
        text = text.replace(f"== {sys.version_info[:2]}", "== (3, 99)")
    place = exposed if route == "pythonpath" and exposed.exists() else image.sitecustomize.parent
    program.write_text(PROGRAM + STATE)
    with image.without_sitecustomize():
        (place / "sitecustomize.py").write_text(text)
        result = run(venv().python, str(program), MEMORY, PYTHONPATH=str(place) if place is exposed else "", **ON)
    assert ("", ["result 42", "[]"]) == (result.stderr, result.stdout.splitlines()[:2])


@pytest.mark.parametrize("gate", [{}, ON], ids=["gate-closed", "gate-open"])
@pytest.mark.parametrize("route", ["standard-library", "pythonpath"])
def test_applications_sitecustomize(
    gate: dict[str, str], route: str, image: Image, tmp_path: Path, venv: Callable[..., Venv]
) -> None:
    """
    The application's own sitecustomize runs as ever, once, and is the one that `import sitecustomize` gives.
    """
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('own', __name__, __file__); answer = 42")
    path = [str(image.exposed)] if route == "pythonpath" else []
    (venv("typing-extensions").site_packages / "own.pth").write_text(f"{own}\n")
    program = "import sitecustomize; print(sitecustomize.answer)"
    python = venv("typing-extensions").python
    result = run(python, "-c", program, PYTHONPATH=":".join(path), **gate)
    assert ("", f"own sitecustomize {own}/sitecustomize.py\n42\n") == (result.stderr, result.stdout)


def test_failing_sitecustomize(image: Image, tmp_path: Path, venv: Callable[..., Venv]) -> None:
    """
    An application's sitecustomize that fails fails as ever, and the agent starts all the same.
    """
    (tmp_path / "own.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("1 / 0")
    (venv("wrapt").site_packages / "own.pth").write_text(f"{tmp_path}\n")
    result = run(venv("wrapt").python, "-c", STATE, **ON)
    assert (
        "Error in sitecustomize; set PYTHONVERBOSE for traceback:\nZeroDivisionError: division by zero\n"
        == result.stderr
    )
    assert "['otel_async_sqla_agent']" == result.stdout.splitlines()[0]


TRACING = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def setup():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"span {span.name}\\n")))
    trace.set_tracer_provider(provider)
"""
TRACED = """
import asyncio, sys, tracing
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
if sys.argv[1] == "before":
    tracing.setup()
engine = create_async_engine("sqlite+aiosqlite://")

async def main():
    if sys.argv[1] == "while-it-starts":
        tracing.setup()
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "while-it-starts"])
def test_applications_provider(when: str, program: Path, venv: Callable[..., Venv], receiver: Receiver) -> None:
    """
    The provider of an application's tracing.py gets the spans, and no other is set beside it.
    """
    (program.parent / "tracing.py").write_text(TRACING)
    program.write_text(TRACED)
    result = run(venv("opentelemetry-sdk").python, str(program), when, **ON, **receiver.environ)
    assert ("", 0) == (result.stderr, result.returncode)
    assert ["span connect", "span SELECT"] == result.stdout.splitlines()
    assert [] == receiver.spans()


@pytest.mark.parametrize(
    ("sdk", "spans"), [(None, ["connect", "SELECT"]), ("auto", ["connect", "SELECT"]), ("off", [])]
)
def test_sdk(sdk: str | None, spans: list[str], program: Path, venv: Callable[..., Venv], receiver: Receiver) -> None:
    """
    Without the launcher the SDK is configured, unless OTEL_ASYNC_SQLA_SDK=off.
    """
    variables = {} if sdk is None else {"OTEL_ASYNC_SQLA_SDK": sdk}
    result = run(venv(*OPENTELEMETRY).python, str(program), MEMORY, **ON, **variables, **receiver.environ)
    assert ([], 0) == (complaints(result), result.returncode)
    assert spans == spans_of(receiver)
    assert (not spans) == ("WARNING otel_async_sqla_agent no TracerProvider is set" in result.stdout)


def test_environments_files(program: Path, image: Image, receiver: Receiver) -> None:
    """
    With the agent in the application's own environment `.pth` and `.start` do the same, until they are removed.
    """
    venv = image.venv("environment", *SQLALCHEMY, f"{AGENT}[distro]")

    def names(*command: str, **variables: str) -> list[str]:
        before = len(receiver.spans())
        result = run(venv.python, *command, cwd=program.parent, **SILENT, **variables, **receiver.environ)
        assert ([], 0, "result 42") == (complaints(result), result.returncode, result.stdout.splitlines()[-1])
        return [span.name for span in receiver.spans()[before:]]

    def preinstall(*options: str) -> list[str]:
        result = run(venv.python, "-m", "otel_async_sqla_agent", "preinstall", *options, cwd=program.parent)
        assert ("", 0) == (result.stderr, result.returncode)
        return result.stdout.splitlines()

    on = {"OTEL_ASYNC_SQLA_MODE": "auto"}
    with image.without_sitecustomize():
        assert 3 == len(preinstall())
        assert ["connect", "SELECT"] == names("-I", str(program), MEMORY, **on)
        assert [] == names(str(program), MEMORY)
        # Under the launcher as well, also where a child loses the launcher's PYTHONPATH, as old launchers have it.
        (program.parent / "run.py").write_text(RUN)
        assert ["connect", "SELECT"] == names("-c", LAUNCHER, venv.python, str(program), MEMORY, **on)
        assert ["connect", "SELECT"] == names("-c", LAUNCHER, venv.python, "run.py", MEMORY, **on)
        preinstall("--uninstall")
        assert [] == names(str(program), MEMORY, **on)
        preinstall()
        shutil.rmtree(venv.site_packages / "otel_async_sqla_agent")
        assert [] == names(str(program), MEMORY, **on)


def test_start_file(program: Path, image: Image, receiver: Receiver) -> None:
    """
    What `.start` names does the same: Python 3.15 calls it, whatever the variable says, and ignores `.pth`'s line.
    """
    venv = image.venv("start-file", *SQLALCHEMY, f"{AGENT}[distro]")
    run(venv.python, "-m", "otel_async_sqla_agent", "preinstall", cwd=program.parent)
    (venv.site_packages / "otel_async_sqla_agent.pth").unlink()
    start = (venv.site_packages / "otel_async_sqla_agent.start").read_text().strip()
    program.write_text(f"import pkgutil\npkgutil.resolve_name({start!r})()\n{PROGRAM}")
    with image.without_sitecustomize():
        for variables, spans in (({}, []), (ON, ["connect", "SELECT"])):
            result = run(venv.python, str(program), MEMORY, **variables, **receiver.environ)
            assert ([], "result 42") == (complaints(result), result.stdout.splitlines()[-1])
            assert spans == spans_of(receiver)
        shutil.rmtree(venv.site_packages / "otel_async_sqla_agent")
        result = run(venv.python, str(program), MEMORY, **ON)
        assert ("", "result 42") == (result.stderr, result.stdout.splitlines()[-1])

from __future__ import annotations

import shutil
import socket
import sys
import zipapp
from pathlib import Path

import pytest

from integration.conftest import Receiver
from integration.processes import complaints, newest_only, run
from tests.recording import AGENT

PROGRAM = """
import asyncio, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

def work(number):
    asyncio.run(statement(number))

async def statement(number):
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT :n"), {"n": number})
    await engine.dispose()

def fail(number):
    work(number)
    sys.exit(number)

def children(method, target):
    made = [multiprocessing.get_context(method).Process(target=target, args=(number,)) for number in (3, 4)]
    for process in made:
        process.start()
    for process in made:
        process.join()
    print([process.exitcode for process in made])

def pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(work, [3, 4], chunksize=1)
        pool.close()
        pool.join()

def executor():
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
        list(executor.map(work, [3, 4]))

if __name__ == "__main__":
    exec(sys.argv[1])
"""


def spans(receiver: Receiver) -> list[str]:
    return [span.name for span in receiver.spans() if span.scope == AGENT and span.name != "connect"]


@pytest.mark.parametrize(
    ("main", "output", "statements"),
    [
        pytest.param("children('fork', work)", "[0, 0]\n", 2, id="fork"),
        pytest.param("work(0); children('fork', work)", "[0, 0]\n", 3, id="fork-after-engine"),
        pytest.param("children('forkserver', work)", "[0, 0]\n", 2, id="forkserver"),
        pytest.param("children('spawn', work)", "[0, 0]\n", 2, id="spawn"),
        pytest.param("work(0); children('fork', fail)", "[3, 4]\n", 3, id="exit-code", marks=newest_only),
        pytest.param("pool()", "", 2, id="Pool", marks=newest_only),
        pytest.param("executor()", "", 2, id="ProcessPoolExecutor", marks=newest_only),
    ],
)
def test_children(main: str, output: str, statements: int, tmp_path: Path, receiver: Receiver) -> None:
    """
    A short child of multiprocessing sends its spans before it ends, and ends with its own exit code.
    """
    (tmp_path / "app.py").write_text(PROGRAM)
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",  # of forking beside the SDK's threads
        "app.py",
        main,
        cwd=tmp_path,
        OTEL_LOGS_EXPORTER="none",
        **receiver.environ,
    )
    assert (set(complaints(result)), result.returncode, result.stdout) == (set(), 0, output)
    assert ["SELECT"] * statements == spans(receiver)


def test_collector_hangs(tmp_path: Path) -> None:
    """
    Where nobody answers an export that may take ten minutes, children end long before, as ever.
    """
    (tmp_path / "app.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as collector:
        result = run(
            "opentelemetry-instrument",
            sys.executable,
            "app.py",
            "children('fork', work)",
            cwd=tmp_path,
            OTEL_LOGS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_TIMEOUT="600",
        )
    assert (result.returncode, result.stdout) == (0, "[0, 0]\n")


MAIN = """
import asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

async def statement():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()

def main():
    asyncio.run(statement())
    return 7
"""
START = "import sys\nfrom package.app import main\nsys.exit(main())\n"
# As pip writes it where the interpreter's path is too long for a first line.
CONSOLE_SCRIPT = f"""#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
{START}"""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((sys.executable, "-m", "package"), id="module"),
        pytest.param(("./script",), id="console-script"),
        pytest.param((sys.executable, "app.pyz"), id="zipapp", marks=newest_only),
        pytest.param(
            (sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call([sys.executable, 'app.pyz']))"),
            id="subprocess",
        ),
    ],
)
def test_ways_to_start(command: tuple[str, ...], tmp_path: Path, receiver: Receiver) -> None:
    """
    However Python is started under the launcher, a program makes its spans and ends with its own exit code.
    """
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "app.py").write_text(MAIN)
    (package / "__main__.py").write_text(START)
    (tmp_path / "script").write_text(CONSOLE_SCRIPT)
    (tmp_path / "script").chmod(0o755)
    archived = shutil.copytree(package, tmp_path / "archived" / "package").parent
    (archived / "__main__.py").write_text(START)
    zipapp.create_archive(archived, tmp_path / "app.pyz")
    result = run("opentelemetry-instrument", *command, cwd=tmp_path, OTEL_LOGS_EXPORTER="none", **receiver.environ)
    assert (set(complaints(result)), result.returncode) == (set(), 7)
    assert spans(receiver) == ["SELECT"]

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from integration.conftest import Receiver
from integration.processes import complaints, run
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
        pytest.param("work(0); children('fork', fail)", "[3, 4]\n", 3, id="exit-code"),
        pytest.param("pool()", "", 2, id="Pool"),
        pytest.param("executor()", "", 2, id="ProcessPoolExecutor"),
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

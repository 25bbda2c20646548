"""
What holds for the direct use of every driver.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import otel_async_sqla_agent
from integration.databases import DRIVERS
from integration.processes import run as run_program
from integration.test_errors import SLEEPS
from integration.test_modes import database, execute_directly, open_connection
from otel_async_sqla_agent._drivers import DRIVERS as ROWS
from tests.conftest import run
from tests.recording import Recording


async def close(connection: Any) -> None:
    closing = getattr(connection, "ensure_closed", None) or connection.close
    await closing()


def classes(driver: str) -> dict[Any, dict[str, Any]]:
    """
    Return the attributes of each class and module that the driver's row touches, and of all that they inherit from.
    """
    owners = [wrap.owner for wrap in ROWS[driver].wraps(importlib.import_module(driver))]
    found = [base for owner in owners for base in (owner.__mro__ if isinstance(owner, type) else [owner])]
    return {owner: dict(vars(owner)) for owner in found}


def shape(function: Any) -> tuple[Any, ...]:
    """
    Return what is seen of a function from outside. A driver's private one may return its coroutine without being a
    coroutine function itself.
    """
    kinds = [inspect.isasyncgenfunction, inspect.isgeneratorfunction, inspect.ismethod]
    if not function.__name__.startswith("_") or function.__name__.startswith("__"):
        kinds.append(inspect.iscoroutinefunction)
    return (
        inspect.signature(function),
        function.__doc__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        *(kind(function) for kind in kinds),
    )


def shapes(driver: str) -> dict[str, Any]:
    wraps = ROWS[driver].wraps(importlib.import_module(driver))
    return {f"{wrap.owner.__name__}.{wrap.name}": shape(getattr(wrap.owner, wrap.name)) for wrap in wraps}


@pytest.mark.parametrize("driver", DRIVERS)
def test_functions(driver: str, agent: Callable[..., None], recording: Recording, tmp_path: Path) -> None:
    """
    The driver's functions look as before while they are replaced, and are the identical ones afterwards.
    """
    url = database(driver, tmp_path)
    before, seen = classes(driver), shapes(driver)

    async def main() -> None:
        await close(await open_connection(driver, url))
        assert seen == shapes(driver)
        assert before != classes(driver)

    agent()
    run(main())
    otel_async_sqla_agent.uninstrument()
    assert before == classes(driver)


@pytest.mark.parametrize("driver", DRIVERS)
def test_never_connected(driver: str, agent: Callable[..., None]) -> None:
    """
    The driver's functions are the identical ones afterwards where nothing was connected.
    """
    before = classes(driver)
    agent()
    otel_async_sqla_agent.uninstrument()
    assert before == classes(driver)


@pytest.mark.parametrize("driver", DRIVERS)
def test_cancellation(driver: str, agent: Callable[..., None], recording: Recording, tmp_path: Path) -> None:
    """
    A statement that is cancelled ends its span, as an error, and gives the caller its own span back.
    """
    url = database(driver, tmp_path)

    async def sleep(connection: Any) -> None:
        with recording.tracer.start_as_current_span("caller") as span:
            try:
                await execute_directly(connection, SLEEPS[DRIVERS[driver]])
            finally:
                assert trace.get_current_span() is span

    async def main() -> None:
        connection = await open_connection(driver, url)
        task = asyncio.ensure_future(sleep(connection))
        while len(recording.started) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await close(connection)

    agent(spans="statement")
    run(main())
    [statement, _] = recording.ended
    assert (["SELECT", "caller"], "ERROR", "asyncio.exceptions.CancelledError") == (
        [name.split()[-1] if name == "caller" else "SELECT" for name in recording.names],
        statement.status.status_code.name,
        statement.attributes["error.type"],
    )


@pytest.mark.parametrize("driver", DRIVERS)
def test_closed_elsewhere(
    driver: str, agent: Callable[..., None], recording: Recording, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A call that is closed in another context than it began in logs nothing, and ends its span without a status.
    """
    url = database(driver, tmp_path)

    async def main() -> None:
        connection = await open_connection(driver, url)
        executes = connection.execute if driver == "aiosqlite" else functools.partial(execute_directly, connection)
        call = executes("SELECT 1")

        async def begin() -> None:
            call.send(None)

        await asyncio.ensure_future(begin())
        assert [False] == [span.end_time is not None for span in recording.started]
        call.close()
        closing = connection.terminate() if driver == "asyncpg" else connection.close()
        if inspect.isawaitable(closing):
            await closing

    agent(spans="statement")
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        run(main())
    recording.assert_all_ended()
    assert ["UNSET"] == [span.status.status_code.name for span in recording.ended]
    assert [] == [record.getMessage() for record in caplog.records if record.name.startswith(("otel_", "opentelem"))]


LAST = {
    "aiomysql": ("cursors.Cursor", "callproc"),
    "aiosqlite": ("core.Connection", "_execute"),
    "asyncmy": ("connection.Connection", "cursor"),
    "asyncpg": ("cursor.CursorIterator", "__anext__"),
    "psycopg": ("AsyncCursor", "executemany"),
}


@pytest.mark.parametrize("missing", ["connect", "last"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_unknown_shape(
    driver: str,
    missing: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    agent: Callable[..., None],
    recording: Recording,
    tmp_path: Path,
) -> None:
    """
    A driver that is not as it is known is left alone with one line that says so.
    """
    from otel_async_sqla_agent._first_connect import CONNECTS

    path, name = CONNECTS[driver] if missing == "connect" else LAST[driver]
    owner = importlib.import_module(driver)
    for part in path.split("."):
        owner = getattr(owner, part)
    monkeypatch.delattr(owner, name)
    before = {base: dict(vars(base)) for base in (owner.__mro__ if isinstance(owner, type) else [owner])}
    other = "psycopg" if driver == "aiosqlite" else "aiosqlite"
    url = database(other, tmp_path)

    async def main() -> None:
        connection = await open_connection(other, url)
        await execute_directly(connection, "SELECT 1")
        await close(connection)

    agent()
    run(main())
    assert before == {base: dict(vars(base)) for base in before}
    assert ["connect", "SELECT"] == recording.names
    known = f"otel-async-sqla-agent does not know this version of {driver} and leaves it alone"
    assert [known] == [record.getMessage().partition(":")[0] for record in caplog.records if "know" in record.msg]


@pytest.mark.parametrize("driver", DRIVERS)
def test_disabled(
    driver: str, agent: Callable[..., None], recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A driver's name among the disabled instrumentations switches its spans off, and those of no other.
    """
    other = "psycopg" if driver == "aiosqlite" else "aiosqlite"
    urls = {name: database(name, tmp_path) for name in (driver, other)}
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", f"redis, {driver}")

    async def main() -> None:
        for name, url in urls.items():
            connection = await open_connection(name, url)
            await execute_directly(connection, "SELECT 1")
            await close(connection)

    agent()
    run(main())
    assert ["connect", "SELECT"] == recording.names


@pytest.mark.parametrize("driver", DRIVERS)
def test_connected_before(driver: str, agent: Callable[..., None], recording: Recording, tmp_path: Path) -> None:
    """
    The statements of a connection that is older than the agent make spans.
    """
    url = database(driver, tmp_path)

    async def main() -> None:
        connection = await open_connection(driver, url)
        agent()
        await execute_directly(connection, "SELECT 1")
        await close(connection)

    run(main())
    [span] = recording.ended
    assert ("SELECT", url.database) == (span.name, span.attributes.get("db.namespace"))


PROGRAM = """
import sys
import otel_async_sqla_agent
otel_async_sqla_agent.instrument()
import {driver}
{driver}.{connect}
otel_async_sqla_agent.uninstrument()
print(*(name for name in ("opentelemetry", "otel_async_sqla_agent._driver") if name in sys.modules))
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_import_alone(driver: str) -> None:
    """
    A process that imports a driver and never connects loads neither OpenTelemetry nor the driver layer.
    """
    connect = "AsyncConnection" if driver == "psycopg" else "connect"
    result = run_program("python", "-c", PROGRAM.format(driver=driver, connect=connect))
    assert ("\n", "", 0) == (result.stdout, result.stderr, result.returncode)

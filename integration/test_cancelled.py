"""
Cancel a call of each kind while it waits: its span ends, and what follows is not a part of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import trace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from integration.databases import DRIVERS, driver_url
from integration.direct import lines
from integration.gate import WAIT, Gate, MysqlGate, PostgresqlGate
from integration.test_direct_use import close
from integration.test_modes import execute_directly, open_connection
from tests.conftest import run
from tests.recording import Recording

# What waits at the gate, once it has shut it.
Way = Callable[[Any, Gate], Awaitable[Any]]
CANCELLED = "ERROR asyncio.exceptions.CancelledError"


async def cancelled(
    way: Way, connection: Any, gate: Gate, after: Callable[[], Awaitable[Any]], recording: Recording, by: str = "cancel"
) -> str:
    """
    Go a way that waits, cancel it there, and go on in the same context; return what the way raised.
    """
    timeout = asyncio.timeout(None) if by == "timeout" else None

    async def main() -> str:
        with recording.tracer.start_as_current_span("cancelled") as span:
            try:
                if timeout is None:
                    raised = repr(await way(connection, gate))
                else:
                    async with timeout:
                        raised = repr(await way(connection, gate))
            except BaseException as error:
                raised = repr(error)
            assert trace.get_current_span() is span
        gate.open()
        with recording.tracer.start_as_current_span("after"):
            await after()
        return raised

    task = asyncio.ensure_future(main())
    await gate.reached(task)
    if timeout is None:
        task.cancel()
    else:
        timeout.reschedule(asyncio.get_running_loop().time())
    return await task


async def asyncpg_cursor(connection: Any, gate: Gate) -> None:
    """
    Wait for the preparation.
    """
    async with connection.transaction():
        gate.shut()
        await connection.cursor("SELECT * FROM tea")


async def asyncpg_prepared_cursor(connection: Any, gate: Gate) -> None:
    """
    Wait for the portal.
    """
    statement = await connection.prepare("SELECT * FROM tea")
    await statement.fetch()  # until then the preparation keeps a lock on the table
    async with connection.transaction():
        gate.shut()
        await statement.cursor()


async def asyncpg_iterated_cursor(connection: Any, gate: Gate) -> None:
    async with connection.transaction():
        gate.shut()
        async for _ in connection.cursor(f"SELECT {WAIT}"):
            pass


async def asyncpg_fetch(connection: Any, gate: Gate) -> None:
    """
    Wait for the second row of a cursor.
    """
    async with connection.transaction():
        cursor = await connection.cursor(f"SELECT CASE WHEN i = 2 THEN {WAIT} END FROM generate_series(1, 2) i")
        await cursor.fetchrow()
        gate.shut()
        await cursor.fetchrow()


async def asyncpg_copy_out(connection: Any, gate: Gate) -> None:
    """
    Wait for an output that is slow. Had the server sent all by then, asyncpg itself would go on waiting.
    """

    async def output(_data: bytes) -> None:
        await gate.wait()

    await connection.copy_from_query("SELECT generate_series(1, 1000000)", output=output)


async def asyncpg_copy_in(connection: Any, gate: Gate) -> None:
    """
    Wait for a source that is slow.
    """

    async def records() -> AsyncIterator[tuple[int]]:
        yield (2,)
        await gate.wait()

    await connection.copy_records_to_table("tea", records=records())


async def asyncpg_locked_copy(connection: Any, gate: Gate) -> None:
    gate.shut()
    await connection.copy_records_to_table("tea", records=[(2,)])


async def asyncpg_commit(connection: Any, gate: Gate) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO slow VALUES (1)")
        gate.shut()


async def psycopg_stream(connection: Any, gate: Gate) -> None:
    gate.shut()
    async for _ in connection.cursor().stream(f"SELECT {WAIT}"):
        pass


async def psycopg_later_stream(connection: Any, gate: Gate) -> None:
    """
    Wait after the first row.
    """
    async for _ in connection.cursor().stream("SELECT generate_series(1, 2)"):
        await gate.wait()


async def psycopg_server_cursor(connection: Any, gate: Gate) -> None:
    async with connection.transaction(), connection.cursor("named") as cursor:
        gate.shut()
        await cursor.execute("SELECT * FROM tea")


async def psycopg_fetch(connection: Any, gate: Gate) -> None:
    async with connection.transaction(), connection.cursor("named") as cursor:
        await cursor.execute(f"SELECT {WAIT}")
        gate.shut()
        await cursor.fetchone()


async def psycopg_locked_copy(connection: Any, gate: Gate) -> None:
    """
    Wait for the block's beginning.
    """
    gate.shut()
    async with connection.cursor().copy("COPY tea FROM STDIN") as copy:
        await copy.write_row((2,))


async def psycopg_copy(connection: Any, gate: Gate) -> None:
    """
    Wait in the block.
    """
    async with connection.cursor().copy("COPY tea FROM STDIN") as copy:
        await copy.write_row((2,))
        await gate.wait()


async def psycopg_read(connection: Any, gate: Gate) -> None:
    gate.shut()
    async with connection.cursor().copy(f"COPY (SELECT {WAIT}) TO STDOUT") as copy:
        await copy.read()


async def psycopg_commit(connection: Any, gate: Gate) -> None:
    async with connection.transaction():
        await connection.execute("INSERT INTO slow VALUES (1)")
        gate.shut()


async def mysql_commit(connection: Any, gate: Gate) -> None:
    await execute_directly(connection, "INSERT INTO slow VALUES (1)")
    gate.shut()
    await connection.commit()


TEA = "SELECT * FROM tea"
INSERT = "INSERT slow: INSERT INTO slow VALUES (?)"
DIRECT: dict[str, dict[str, tuple[Way, list[str]]]] = {
    "asyncpg": {
        "cursor": (asyncpg_cursor, [f"SELECT tea {CANCELLED}: {TEA}"]),
        "prepared cursor": (asyncpg_prepared_cursor, [f"SELECT tea: {TEA}", f"SELECT tea {CANCELLED}: {TEA}"]),
        "iterated cursor": (asyncpg_iterated_cursor, [f"SELECT {CANCELLED}: SELECT pg_advisory_xact_lock(?)"]),
        "fetch": (
            asyncpg_fetch,
            [
                "SELECT generate_series: SELECT CASE WHEN i = ? THEN pg_advisory_xact_lock(?) END"
                " FROM generate_series(?, ?) i"
            ],
        ),
        "copy out": (asyncpg_copy_out, [f"COPY SELECT {CANCELLED}: COPY (SELECT generate_series(?, ?)) TO STDOUT"]),
        "copy in": (asyncpg_copy_in, [f"COPY tea {CANCELLED}: COPY tea FROM STDIN"]),
        "locked copy": (asyncpg_locked_copy, [f"COPY tea {CANCELLED}: COPY tea FROM STDIN"]),
        "commit": (asyncpg_commit, [INSERT, f"COMMIT {CANCELLED}"]),
    },
    "psycopg": {
        "stream": (psycopg_stream, [f"SELECT {CANCELLED}: SELECT pg_advisory_xact_lock(?)"]),
        "later stream": (psycopg_later_stream, ["SELECT: SELECT generate_series(?, ?)"]),
        "server cursor": (psycopg_server_cursor, [f"SELECT tea {CANCELLED}: {TEA}"]),
        "fetch": (psycopg_fetch, ["SELECT: SELECT pg_advisory_xact_lock(?)"]),
        "locked copy": (psycopg_locked_copy, [f"COPY tea {CANCELLED}: COPY tea FROM STDIN"]),
        "copy": (psycopg_copy, [f"COPY tea {CANCELLED}: COPY tea FROM STDIN"]),
        "read": (psycopg_read, [f"COPY SELECT {CANCELLED}: COPY (SELECT pg_advisory_xact_lock(?)) TO STDOUT"]),
        # What psycopg hears is that the server has cancelled it.
        "commit": (psycopg_commit, [INSERT, "COMMIT ERROR 57014"]),
    },
    "aiomysql": {"commit": (mysql_commit, [INSERT, f"COMMIT {CANCELLED}"])},
    "asyncmy": {"commit": (mysql_commit, [INSERT, f"COMMIT {CANCELLED}"])},
}


def gate_of(driver: str) -> Gate:
    return MysqlGate() if DRIVERS[driver] == "mysql" else PostgresqlGate()


async def directly(driver: str, way: Way, recording: Recording, by: str) -> str:
    async def after() -> None:
        # On a connection of its own: some drivers give a cancelled one up.
        own = await open_connection(driver, driver_url(driver))
        await execute_directly(own, "SELECT 'after'")
        await close(own)

    with gate_of(driver) as gate:
        connection = await open_connection(driver, driver_url(driver))
        if driver == "psycopg":
            await connection.set_autocommit(True)
        recording.clear()
        try:
            return await cancelled(way, connection, gate, after, recording, by)
        finally:
            await close(connection)


NEEDS_TIMEOUT = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() came with 3.11")


@pytest.mark.parametrize(
    ("driver", "name", "by"),
    [
        *((driver, name, "cancel") for driver, ways in DIRECT.items() for name in ways),
        *(pytest.param(driver, "commit", "timeout", marks=NEEDS_TIMEOUT) for driver in DIRECT),
    ],
)
def test_direct(driver: str, name: str, by: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    What waits for the server, or for the application inside of a COPY, ends its span as an error when it is cancelled.
    """
    way, spans = DIRECT[driver][name]
    driver_url(driver)
    agent(spans="statement")
    assert ("TimeoutError()" if by == "timeout" else "CancelledError()") == run(directly(driver, way, recording, by))
    assert {"cancelled": spans, "after": ["SELECT: SELECT ?"]} == lines(recording)


async def engine_stream(engine: AsyncEngine, gate: Gate) -> None:
    async with engine.connect() as connection:
        gate.shut()
        await connection.stream(text("SELECT * FROM tea"))


async def engine_fetch(engine: AsyncEngine, gate: Gate) -> None:
    async with engine.connect() as connection:
        numbers = f"SELECT CASE WHEN i = 3000 THEN {WAIT} END FROM generate_series(1, 3000) i"
        rows = await connection.stream(text(numbers))
        await rows.fetchone()
        gate.shut()
        await rows.all()


async def engine_commit(engine: AsyncEngine, gate: Gate) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("INSERT INTO slow VALUES (1)"))
        gate.shut()
        await connection.commit()


ENGINE: dict[str, Way] = {"stream": engine_stream, "fetch": engine_fetch, "commit": engine_commit}


def expected(name: str, mode: str) -> dict[str, list[str]]:
    """
    Return what an engine's way gives: nothing but a statement's span nests in `both`.
    """
    statements = {
        "stream": f"SELECT tea {CANCELLED}: {TEA}",
        "fetch": (
            "SELECT generate_series: SELECT CASE WHEN i = ? THEN pg_advisory_xact_lock(?) END"
            " FROM generate_series(?, ?) i"
        ),
        "commit": INSERT,
    }
    spans = {"cancelled": statements[name], "after": "SELECT: SELECT ?"}
    found = {step: [line, f"> {line}"] if mode == "both" else [line] for step, line in spans.items()}
    if name == "commit":
        found["cancelled"].append(f"COMMIT {CANCELLED}")
    return found


async def by_engine(driver: str, way: Way, recording: Recording) -> str:
    async def after() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 'after'"))

    with gate_of(driver) as gate:
        engine = create_async_engine(driver_url(driver))
        async with engine.connect():
            pass
        recording.clear()
        try:
            return await cancelled(way, engine, gate, after, recording)
        finally:
            await engine.dispose()


# SQLAlchemy leaves psycopg's cursor open when it is cancelled, also without the agent.
@pytest.mark.filterwarnings("ignore:.*AsyncServerCursor:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*AsyncServerCursor:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize(
    ("driver", "name"),
    [
        *((driver, name) for driver in ("asyncpg", "psycopg") for name in ENGINE),
        ("aiomysql", "commit"),
        ("asyncmy", "commit"),
    ],
)
def test_engine(driver: str, name: str, mode: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    What an engine waits for ends its span as an error when it is cancelled; rows that come later are no part of it.
    """
    driver_url(driver)
    agent(mode=mode, spans="statement")
    assert "CancelledError()" == run(by_engine(driver, ENGINE[name], recording))
    assert expected(name, mode) == lines(recording)

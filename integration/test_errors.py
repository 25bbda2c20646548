"""
What a span says of the errors of each driver: the server's code, and its message without the values.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from integration.databases import DRIVERS, driver_url
from tests.conftest import run
from tests.recording import Recording

CANARY = "cAnArY"


class Failure(NamedTuple):
    """
    A statement that fails, and what its span says: code and description.
    """

    sql: str
    code: str
    description: str | None
    parameters: dict[str, str] | None = None


INSERT = "INSERT INTO {table} (id, name, note) VALUES "
BY_PARAMETER = {"value": CANARY}
EVERYWHERE = {"unique": INSERT + f"(2, '{CANARY}', '')", "null": INSERT + f"(2, NULL, '{CANARY}')"}

POSTGRESQL = [
    Failure(EVERYWHERE["unique"], "23505", "duplicate key value violates unique constraint ?"),
    Failure(INSERT + "(2, :value, '')", "23505", "duplicate key value violates unique constraint ?", BY_PARAMETER),
    Failure(EVERYWHERE["null"], "23502", "null value in column ? violates not-null constraint"),
    Failure(INSERT + f"(2, '', '{CANARY * 9}')", "22001", "value too long for type character varying(?)"),
    Failure(INSERT + f"(-1, '{CANARY}', '')", "23514", "new row for relation ?"),
    Failure(f"SELECT 1 '{CANARY}'", "42601", "syntax error at or near ?"),
    Failure(f"SELECT CAST('{CANARY}' AS integer)", "22P02", "invalid input syntax for type integer: ?"),
    Failure(f"SELECT CAST('{{\"{CANARY}' AS json)", "22P02", "invalid input syntax for type json"),
    Failure(f"DO 'BEGIN RAISE EXCEPTION ''{CANARY}''; END'", "P0001", None),
    Failure(f"DO 'BEGIN RAISE ''{CANARY}'' USING ERRCODE = ''check_violation''; END'", "23514", None),
    Failure(f"DO 'BEGIN ASSERT false, ''{CANARY}''; END'", "P0004", None),
]
ASYNCPG = [Failure("SELECT CAST(:value AS integer)", "22000", "invalid input for query argument $?", BY_PARAMETER)]
PSYCOPG = [Failure("SELECT CAST(:value AS integer)", "22P02", "invalid input syntax for type integer: ?", BY_PARAMETER)]
# "…; check the manual that corresponds to your MariaDB server version for the right syntax to use near ? at line ?"
SYNTAX = "You have an error in your SQL syntax; check the manual that corresponds to your"
MYSQL = [
    Failure(EVERYWHERE["unique"], "1062", "Duplicate entry ?"),
    Failure(INSERT + "(2, :value, '')", "1062", "Duplicate entry ?", BY_PARAMETER),
    Failure(EVERYWHERE["null"], "1048", "Column ? cannot be null"),
    Failure(INSERT + f"(2, '', '{CANARY * 9}')", "1406", "Data too long for column ? at row ?"),
    Failure(INSERT + f"('{CANARY}', '', '')", "1366", "Incorrect integer value"),
    Failure(f"SELECT 1 1 '{CANARY}'", "1064", SYNTAX),
    Failure(f"SELECT 1 FROM nowhere WHERE x = '{CANARY}'", "1146", "Table ? doesn't exist"),
    Failure(f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{CANARY}'", "1644", None),
    Failure(f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{CANARY}', MYSQL_ERRNO = 1062", "1062", None),
]
SQLITE = [
    Failure(EVERYWHERE["unique"], "2067", "UNIQUE constraint failed: {table}.name"),
    Failure(INSERT + "(2, :value, '')", "2067", "UNIQUE constraint failed: {table}.name", BY_PARAMETER),
    Failure(EVERYWHERE["null"], "1299", "NOT NULL constraint failed: {table}.name"),
    Failure(f"SELECT 1 '{CANARY}' 2", "1", "near ?"),
    Failure(f"SELECT 1 FROM nowhere WHERE x = '{CANARY}'", "1", "no such table: nowhere"),
]
FAILURES = {
    "aiomysql": MYSQL,
    "aiosqlite": SQLITE,
    "asyncmy": MYSQL,
    "asyncpg": POSTGRESQL + ASYNCPG,
    "psycopg": POSTGRESQL + PSYCOPG,
}


@asynccontextmanager
async def table(engine: AsyncEngine) -> AsyncIterator[str]:
    """
    Make a table of the test's own, with a row that has the canary in it.
    """
    name = f"t_{uuid.uuid4().hex[:8]}"
    columns = "id INTEGER PRIMARY KEY CHECK (id > 0), name VARCHAR(50) NOT NULL UNIQUE, note VARCHAR(20)"
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"CREATE TABLE {name} ({columns})"))
            await connection.execute(text(INSERT.replace("{table}", name) + f"(1, '{CANARY}', '')"))
        yield name
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP TABLE {name}"))
        await engine.dispose()


@pytest.mark.parametrize("driver", DRIVERS)
def test_failures(driver: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    Each failing statement's span has the code, and a description and an event without any value.
    """
    agent(spans="statement")
    url = driver_url(driver)

    async def main() -> str:
        engine = create_async_engine(url)
        async with table(engine) as name:
            for failure in FAILURES[driver]:
                async with engine.connect() as connection:
                    with pytest.raises(DBAPIError):
                        await connection.execute(text(failure.sql.replace("{table}", name)), failure.parameters or {})
        return name

    name = run(main())
    failed = [span for span in recording.ended if not span.status.is_unset]
    coded = driver != "aiosqlite" or sys.version_info >= (3, 11)  # before, sqlite3 did not tell the code
    assert [(failure.code if coded else None, failure.description) for failure in FAILURES[driver]] == [
        (span.attributes.get("db.response.status_code"), _description(span, name)) for span in failed
    ]
    assert [] == [span for span in recording.ended if CANARY in span.to_json()]


def _description(span: Any, table: str) -> str | None:
    """
    Return the description, which the event repeats; that of a syntax error in MySQL up to the server's name.
    """
    [*events] = span.events
    assert [span.status.description] == ([event.attributes["exception.message"] for event in events] or [None])
    description: str | None = span.status.description
    if description and description.startswith(SYNTAX):
        return SYNTAX
    return description and description.replace(table, "{table}")


TIMEOUTS = {
    "postgresql": ("SET statement_timeout = 20", "SELECT pg_sleep(9)", "57014"),
    "mariadb": ("SET max_statement_time = 0.02", "SELECT SLEEP(9)", "1969"),
    "mysql": ("SET max_execution_time = 20", "SELECT SLEEP(9) FROM information_schema.tables", "3024"),
}
SLEEPS = {
    "postgresql": "SELECT pg_sleep(30)",
    "mysql": "SELECT SLEEP(30)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n",
}


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "aiosqlite"])
def test_servers_timeout(driver: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    A time-out on the server's side is the server's error, with its code.
    """
    agent(spans="statement")
    url = driver_url(driver)

    async def main() -> str:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            dialect: Any = connection.dialect
            system = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
            before, sleep, code = TIMEOUTS[system]
            await connection.execute(text(before))
            with pytest.raises(DBAPIError):
                await connection.execute(text(sleep))
            await connection.invalidate()
        await engine.dispose()
        return code

    code = run(main())
    assert [code] == [span.attributes["error.type"] for span in recording.ended if not span.status.is_unset]


@pytest.mark.parametrize("driver", DRIVERS)
def test_cancellation(driver: str, agent: Callable[..., None], recording: Recording) -> None:
    """
    A cancelled statement's span is an error of type CancelledError without a description, whatever the driver raises.
    """
    agent(spans="statement")
    url = driver_url(driver)

    async def sleep(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            with recording.tracer.start_as_current_span("caller") as span:
                try:
                    await connection.execute(text(SLEEPS[DRIVERS[driver]]))
                finally:
                    assert trace.get_current_span() is span

    async def main() -> None:
        engine = create_async_engine(url)
        task = asyncio.ensure_future(sleep(engine))
        while len(recording.started) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    run(main())
    [statement, _] = recording.ended
    assert ("ERROR", None, (), "asyncio.exceptions.CancelledError") == (
        statement.status.status_code.name,
        statement.status.description,
        statement.events,
        statement.attributes["error.type"],
    )

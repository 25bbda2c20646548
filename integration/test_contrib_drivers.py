from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import pytest
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

import otel_async_sqla_agent
from integration.test_modes import database, execute_directly, expected, open_connection, scenario, steps
from tests.conftest import run
from tests.recording import AGENT, Recording

INSTRUMENTORS: dict[str, Any] = {
    "aiosqlite": SQLite3Instrumentor,
    "asyncpg": AsyncPGInstrumentor,
    "psycopg": PsycopgInstrumentor,
}
# Every class and module that one of the two sides changes.
CHANGED = {
    "aiosqlite": [aiosqlite.Connection, sqlite3],
    "asyncpg": [
        asyncpg.connect_utils,
        asyncpg.Connection,
        asyncpg.prepared_stmt.PreparedStatement,
        asyncpg.cursor.BaseCursor,
        asyncpg.cursor.Cursor,
        asyncpg.cursor.CursorIterator,
    ],
    "psycopg": [psycopg, psycopg.AsyncConnection, psycopg.AsyncCursor, psycopg.AsyncServerCursor, psycopg.Connection],
}


@pytest.fixture(params=list(INSTRUMENTORS))
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    # Contrib does not put a class method back as it was (psycopg's `connect`): what it leaves is where the tests begin.
    INSTRUMENTORS[name]().instrument()
    INSTRUMENTORS[name]().uninstrument()
    yield name
    otel_async_sqla_agent.uninstrument()
    if INSTRUMENTORS[name]().is_instrumented_by_opentelemetry:
        INSTRUMENTORS[name]().uninstrument()


def switch_on(order: str, *both: Callable[[], None]) -> None:
    """
    Switch the agent and contrib on, in this order or the other way round.
    """
    for side in both if order == "agent first" else both[::-1]:
        side()


def attributes(driver: str) -> list[dict[str, Any]]:
    return [dict(vars(changed)) for changed in CHANGED[driver]]


async def use_directly(driver: str, url: Any) -> None:
    connection = await open_connection(driver, url)
    await execute_directly(connection, "SELECT 1")
    closing = connection.close()
    if inspect.isawaitable(closing):
        await closing


@pytest.mark.parametrize("order", ["agent first", "contrib first"])
@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
def test_scenario_beside_contrib(
    driver: str, mode: str, order: str, recording: Recording, agent: Callable[..., None], tmp_path: Path
) -> None:
    """
    The tree is the same where contrib's instrumentor is active; in mode `engine`, direct use is left to contrib.
    """
    switch_on(
        order,
        lambda: agent(mode=mode),
        lambda: INSTRUMENTORS[driver]().instrument(tracer_provider=recording.provider),
    )
    run(scenario(driver, database(driver, tmp_path), recording))
    tree = expected(driver, mode)
    if mode == "engine" and driver != "aiosqlite":  # contrib's spans of sqlite3 have no parent in its thread
        assert ["direct INTERNAL"] == tree.pop()
        tree.append(["direct INTERNAL", ["SELECT"]])
    assert tree == steps(recording)


@pytest.mark.parametrize("order", ["agent first", "contrib first"])
@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
@pytest.mark.parametrize("leaves_first", ["agent", "contrib"])
def test_both_sides_leave(
    driver: str,
    mode: str,
    order: str,
    leaves_first: str,
    recording: Recording,
    agent: Callable[..., None],
    tmp_path: Path,
) -> None:
    """
    Whichever side leaves first, the other one works on, and in the end the driver's own functions are back.
    """
    url = database(driver, tmp_path)
    before = attributes(driver)
    instrumentor = INSTRUMENTORS[driver]()
    switch_on(order, lambda: agent(mode=mode), lambda: instrumentor.instrument(tracer_provider=recording.provider))
    run(use_directly(driver, url))
    recording.clear()
    if leaves_first == "agent":
        otel_async_sqla_agent.uninstrument()
    else:
        instrumentor.uninstrument()
    run(use_directly(driver, url))
    contrib = instrumentor.__module__
    if leaves_first == "agent":
        assert {(contrib, "SELECT")} == {(span.instrumentation_scope.name, span.name) for span in recording.ended}
        instrumentor.uninstrument()
    else:
        names = [] if mode == "engine" else [(AGENT, "connect"), (AGENT, "SELECT")]
        assert names == [(span.instrumentation_scope.name, span.name) for span in recording.ended]
        otel_async_sqla_agent.uninstrument()
    assert before == attributes(driver)


def test_provider_given_to_contrib(
    driver: str, recording: Recording, agent: Callable[..., None], tmp_path: Path
) -> None:
    """
    Spans of direct use go where contrib was told that they go.
    """
    contribs, url = Recording(), database(driver, tmp_path)
    agent()
    INSTRUMENTORS[driver]().instrument(tracer_provider=contribs.provider)
    run(use_directly(driver, url))
    assert ([], ["connect", "SELECT"]) == (recording.names, contribs.names)


def test_options_without_equivalent(driver: str, agent: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """
    What contrib is asked for and the agent does not have is named once.
    """
    agent()
    INSTRUMENTORS[driver]().instrument(skip_dep_check=True, enable_commenter=True, commenter_options={"a": 1})
    assert [
        f"{INSTRUMENTORS[driver].__name__}().instrument(commenter_options, enable_commenter): calls of {driver} are "
        "instrumented by otel-async-sqla-agent, which has no equivalent of these options"
    ] == caplog.messages


def test_backup_beside_contrib(agent: Callable[..., None], tmp_path: Path) -> None:
    """
    aiosqlite's `backup()` works where contrib's sqlite3 instrumentor is active, which it does not without the agent.
    """

    async def back_up() -> list[Any]:
        async with aiosqlite.connect(tmp_path / "a.db") as source, aiosqlite.connect(tmp_path / "b.db") as target:
            await source.execute("CREATE TABLE tea (name TEXT)")
            await source.backup(target)
            return list(await target.execute_fetchall("SELECT name FROM tea"))

    agent()
    SQLite3Instrumentor().instrument()
    try:
        assert [] == run(back_up())
    finally:
        SQLite3Instrumentor().uninstrument()

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiosqlite
import pytest
import sqlalchemy
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import Recording, points

MODES = ["auto", "engine", "driver", "both"]
DURATION = "db.client.operation.duration"


async def select(engine: AsyncEngine, sql: str = "SELECT 1") -> None:
    async with engine.connect() as connection:
        await connection.execute(text(sql))


async def select_and_dispose(engine: AsyncEngine, sql: str = "SELECT 1") -> None:
    await select(engine, sql)
    await engine.dispose()


def pair(mode: str, line: str) -> list[Any]:
    """
    Return what a statement gives through an engine.
    """
    return [line, [line]] if mode == "both" else [line]


@pytest.mark.parametrize("mode", MODES)
def test_engine_that_exists(mode: str, recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    An engine that exists when the agent is activated has the mode of all others.
    """
    engine = create_async_engine(url)
    agent(mode=mode, spans="statement")
    run(select_and_dispose(engine))
    assert [pair(mode, "SELECT")] == recording.tree()


@pytest.mark.parametrize("mode", MODES)
def test_parents_of_many_at_once(mode: str, recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    A hundred statements at the same time are each under the span that they were executed in.
    """

    async def task(engine: AsyncEngine, number: int) -> None:
        with recording.tracer.start_as_current_span(f"task {number}"):
            await select(engine, f"SELECT {number} FROM (SELECT 1) AS t{number}")

    async def tasks() -> None:
        engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=20)
        await asyncio.gather(*(task(engine, number) for number in range(100)))
        await engine.dispose()

    agent(mode=mode, spans="statement")
    run(tasks())
    expected = [[f"task {number} INTERNAL", pair(mode, "SELECT SELECT")] for number in range(100)]
    texts = {
        span.parent.span_id: span.attributes["db.query.text"]
        for span in recording.ended
        if "db.query.text" in span.attributes
    }
    assert sorted(expected) == sorted(recording.tree())
    for span in recording.ended:
        if span.name.startswith("task"):
            number = span.name.removeprefix("task ")
            assert f"SELECT ? FROM (SELECT ?) AS t{number}" == texts[span.context.span_id]


@pytest.mark.parametrize("mode", MODES)
def test_duration_is_recorded_once(
    mode: str, reader: InMemoryMetricReader, measured: Callable[..., None], url: str
) -> None:
    """
    The duration of a statement is recorded once in each mode, and a preparation's or a connect's not at all.
    """

    async def statements() -> None:
        engine = create_async_engine(url)
        for _ in range(3):
            await select(engine)
        await engine.dispose()

    measured(mode=mode)
    run(statements())
    assert [3] == [point.count for point in points(reader, DURATION).values()]


@pytest.mark.parametrize("mode", MODES)
def test_wait_for_the_pool(mode: str, recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    The first statement after a checkout tells where the connection came from, in whichever layer its span is made.
    """

    async def statements() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.execute(text("SELECT 2"))
        await engine.dispose()

    agent(mode=mode, spans="statement")
    run(statements())
    source = "async_sqla.pool.source='new'"
    first = [f"SELECT {source}", ["SELECT"]] if mode == "both" else [f"SELECT {source}"]
    assert [first, pair(mode, "SELECT")] == recording.tree("async_sqla.pool.source")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{"exclude": "SECRET"}, {"require_parent": True}, {"spans": "connect"}])
def test_left_out(
    mode: str, options: dict[str, Any], recording: Recording, agent: Callable[..., None], url: str
) -> None:
    """
    A statement that the configuration leaves out makes no span in any layer.
    """
    agent(mode=mode, **options)
    run(select_and_dispose(create_async_engine(url), "SELECT 'secret'"))
    assert [] == [name for name in recording.names if name != "connect"]


@pytest.mark.parametrize("mode", ["auto", "engine", "driver"])
def test_least_duration(mode: str, recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    With a least duration, statements that are shorter make no span in any layer, unless they fail.
    """

    async def fail() -> None:
        engine = create_async_engine(url)
        with pytest.raises(Exception, match="no such table"):
            await select(engine, "SELECT * FROM nowhere")
        await select_and_dispose(engine)

    agent(mode=mode, spans="statement", min_duration_ms=60_000)
    run(fail())
    assert [["SELECT nowhere ERROR"]] == recording.tree()


def test_literal_execute_in_driver_mode(recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    What the engine knows of a text, its driver's span knows too: values written into it are masked.
    """
    from sqlalchemy import bindparam

    async def statements() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            literal = bindparam("a", "canary", literal_execute=True)
            await connection.execute(text("SELECT :a, :b").bindparams(literal), {"b": 1})
            await connection.execute(text("SELECT 'kept', :b"), {"b": 1})
        await engine.dispose()

    agent(mode="driver", spans="statement")
    run(statements())
    assert ["SELECT ?, ?", "SELECT 'kept', ?"] == [span.attributes["db.query.text"] for span in recording.ended]


@pytest.mark.skipif(sqlalchemy.__version__.startswith("1."), reason="has no async_creator")
@pytest.mark.parametrize("mode", MODES)
def test_direct_use_inside_of_a_connect(mode: str, recording: Recording, agent: Callable[..., None], url: str) -> None:
    """
    What a connect needs is a part of it: also what an `async_creator` asks another database for.
    """
    path = url.removeprefix("sqlite+aiosqlite:///")

    async def creator() -> aiosqlite.Connection:
        async with aiosqlite.connect(f"{path}.secrets") as connection:
            await connection.execute("SELECT 'password'")
        return await aiosqlite.connect(path)

    agent(mode=mode)
    run(select_and_dispose(create_async_engine("sqlite+aiosqlite://", async_creator=creator)))
    connects = [["connect"]] * (2 if mode == "driver" else 1)
    assert [*connects, pair(mode, "SELECT")] == recording.tree()


@pytest.mark.parametrize("mode", MODES)
def test_set_up_of_a_session_makes_no_span(
    mode: str, recording: Recording, agent: Callable[..., None], url: str
) -> None:
    """
    What SQLAlchemy sends to set an isolation level, and to learn it, is noise.
    """

    async def set_up() -> None:
        engine = create_async_engine(url, pool_pre_ping=True).execution_options(isolation_level="READ UNCOMMITTED")
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.run_sync(lambda sync: sync.get_isolation_level())
        await engine.dispose()

    agent(mode=mode, spans="statement")
    run(set_up())
    assert [] == recording.tree()


def test_uninstrument_gives_the_driver_back(agent: Callable[..., None], url: str) -> None:
    """
    `uninstrument()` leaves the driver's classes as they were, and its connections go on.
    """

    async def statements() -> None:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            otel_async_sqla_agent.uninstrument()
            assert 1 == (await connection.execute(text("SELECT 1"))).scalar()
        await engine.dispose()

    before = dict(vars(aiosqlite.Connection))
    agent()
    run(statements())
    assert before == dict(vars(aiosqlite.Connection))

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import sqlalchemy.exc
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import format_span_id, format_trace_id
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import Recording, points
from tests.test_engine import MEMORY, pooled

NAME = "db.client.connection.pool.name"


def counted(reader: InMemoryMetricReader, name: str = "") -> tuple[int, int]:
    """
    Return the used and the idle connections of the pool of that name, or of the only one.
    """
    found = {
        dict(attributes)["db.client.connection.state"]: point.value
        for attributes, point in points(reader, "db.client.connection.count").items()
        if not name or dict(attributes)[NAME] == name
    }
    return found["used"], found["idle"]


def value(reader: InMemoryMetricReader, name: str) -> Any:
    """
    Return the only value of a metric, or the count of a histogram; None without one.
    """
    found = list(points(reader, f"db.client.connection.{name}").values())
    return (getattr(found[0], "count", None) or getattr(found[0], "value", None) or 0) if found else None


def test_counts(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Used and idle follow checkout, return, detach, invalidation, overflow and dispose.
    """
    measured()
    seen = []

    async def main() -> None:
        engine = pooled(url, pool_size=2, max_overflow=1)
        first, second, third = [await engine.connect() for _ in range(3)]
        seen.append(("three out", counted(reader)))
        await first.close()
        seen.append(("one back", counted(reader)))
        await second.invalidate()
        await second.close()
        seen.append(("one invalidated", counted(reader)))
        detached = await third.get_raw_connection()
        detached.detach()
        await third.close()
        seen.append(("one detached", counted(reader)))
        async with engine.connect():
            seen.append(("taken again", counted(reader)))
            old = engine.sync_engine.pool
            await engine.dispose()
            seen.append(("disposed while out", counted(reader)))
        seen.append(("and back", counted(reader)))
        await greenlet_spawn(old.dispose)
        await engine.dispose()
        assert old is not engine.sync_engine.pool

    run(main())
    assert [
        ("three out", (3, 0)),
        ("one back", (2, 1)),
        ("one invalidated", (1, 1)),
        ("one detached", (0, 1)),
        ("taken again", (1, 0)),
        ("disposed while out", (1, 0)),
        ("and back", (0, 1)),
    ] == seen


@pytest.mark.parametrize(
    ("options", "limits", "out", "back"),
    [
        pytest.param({"poolclass": NullPool}, (0, 0, None), (1, 0), (0, 0), id="null"),
        pytest.param({"poolclass": StaticPool}, (1, 0, 1), (1, 0), (0, 1), id="static"),
        pytest.param({"pool_size": 3, "max_overflow": 4}, (3, 0, 7), (1, 0), (0, 1), id="queue"),
        pytest.param({"pool_size": 3, "max_overflow": -1}, (3, 0, None), (1, 0), (0, 1), id="no-limit"),
        pytest.param({"pool_size": 0}, (None, 0, None), (1, 0), (0, 1), id="no-size"),
    ],
)
def test_limits(
    options: dict[str, Any],
    limits: tuple[Any, ...],
    out: tuple[int, int],
    back: tuple[int, int],
    measured: Any,
    reader: InMemoryMetricReader,
    url: str,
) -> None:
    """
    Each class of pool says how many connections it may have, and counts those that it has.
    """
    measured()
    seen = []

    async def main() -> None:
        engine = create_async_engine(url, **options) if "poolclass" in options else pooled(url, **options)
        async with engine.connect():
            seen.append(counted(reader))
        seen.append(counted(reader))
        assert limits == tuple(value(reader, name) for name in ("idle.max", "idle.min", "max"))
        await engine.dispose()

    run(main())
    assert [out, back] == seen


def test_times(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    One create_time a real connect; one wait_time and one use_time a checkout.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        for _ in range(3):
            async with engine.connect():
                await asyncio.sleep(0.01)
        await engine.dispose()

    run(main())
    assert (1, 3, 3) == tuple(value(reader, name) for name in ("create_time", "wait_time", "use_time"))
    [use] = points(reader, "db.client.connection.use_time").values()
    assert use.min >= 0.01


def test_source_of_a_connection(measured: Any, recording: Recording, url: str) -> None:
    """
    The first statement after a checkout says how long the checkout took, and where the connection came from.
    """
    measured(spans="statement")

    async def twice(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await connection.execute(text("SELECT 2"))

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0)
        await twice(engine)
        await twice(engine)
        async with engine.connect():
            waiting = asyncio.ensure_future(twice(engine))
            await asyncio.sleep(0.02)
        await waiting
        await engine.dispose()

    run(main())
    waits = [span.attributes.get("async_sqla.pool.wait_time") for span in recording.ended]
    assert ["new", None, "idle", None, "queued", None] == [
        span.attributes.get("async_sqla.pool.source") for span in recording.ended
    ]
    assert [float, type(None)] * 3 == [type(wait) for wait in waits]
    assert waits[4] >= 0.01


def test_one_comes_back_and_several_wait(
    measured: Any, reader: InMemoryMetricReader, recording: Recording, url: str
) -> None:
    """
    Of several that ask at the same time for the only idle connection, all but one wait in the queue.
    """
    measured(spans="statement")
    pending = []

    async def one(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0)
        await one(engine)
        tasks = [asyncio.ensure_future(one(engine)) for _ in range(3)]
        await asyncio.sleep(0)
        pending.append(value(reader, "pending_requests"))
        await asyncio.gather(*tasks)
        pending.append(value(reader, "pending_requests"))
        await engine.dispose()

    run(main())
    assert [2, 0] == pending
    sources = [span.attributes["async_sqla.pool.source"] for span in recording.ended]
    assert ["new", "idle", "queued", "queued"] == sources


def test_pool_timeout(measured: Any, reader: InMemoryMetricReader, recording: Recording, url: str) -> None:
    """
    A pool that is exhausted for too long makes a span that tells who holds its connections.
    """
    measured(spans="statement")
    pending = []

    async def hold(engine: AsyncEngine, number: int, release: asyncio.Event) -> None:
        with recording.tracer.start_as_current_span(f"holder {number}"):
            async with engine.connect():
                await release.wait()

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=1, pool_timeout=0.05)
        release = asyncio.Event()
        holders = []
        for number in range(2):
            holders.append(asyncio.ensure_future(hold(engine, number, release)))
            await asyncio.sleep(0.03)
        with recording.tracer.start_as_current_span("caller"):
            waiting = asyncio.ensure_future(engine.connect().start())
            await asyncio.sleep(0)  # it is in the queue by now
            pending.append(value(reader, "pending_requests"))
            with pytest.raises(sqlalchemy.exc.TimeoutError):
                await waiting
        pending.append(value(reader, "pending_requests"))
        release.set()
        await asyncio.gather(*holders)
        await engine.dispose()

    run(main())
    assert [1, 0] == pending
    assert 1 == value(reader, "timeouts")
    assert [
        ["holder 0 INTERNAL"],
        ["holder 1 INTERNAL"],
        ["caller INTERNAL", ["pool timeout INTERNAL ERROR error.type='sqlalchemy.exc.TimeoutError'"]],
    ] == recording.tree("error.type")
    holders, span = recording.started[:2], recording.started[3]
    path = url.removeprefix("sqlite+aiosqlite:///")
    assert {
        "db.system": "sqlite",
        "db.name": path,
        NAME: path,
        "error.type": "sqlalchemy.exc.TimeoutError",
    } == span.attributes
    assert span.end_time - span.start_time >= 0.05e9
    [exhausted] = span.events
    attributes = dict(exhausted.attributes)
    seconds = attributes.pop("async_sqla.pool.holder.seconds")
    assert seconds[0] > seconds[1] > 0.05
    assert {
        "async_sqla.pool.size": 1,
        "async_sqla.pool.overflow": 1,
        "async_sqla.pool.waiters": 0,
        "async_sqla.pool.holder.span_names": ("holder 0", "holder 1"),
        "async_sqla.pool.holder.trace_ids": tuple(format_trace_id(each.context.trace_id) for each in holders),
        "async_sqla.pool.holder.span_ids": tuple(format_span_id(each.context.span_id) for each in holders),
    } == attributes


def test_pool_timeout_while_connecting(measured: Any, recording: Recording, url: str) -> None:
    """
    A connection that is still being made belongs to the overflow, as SQLAlchemy's own message says.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=1, pool_timeout=0.05)
        answered = asyncio.Event()
        async with engine.connect():
            sqlalchemy.event.listen(engine.sync_engine, "do_connect", lambda *_: await_only(answered.wait()) and None)
            connecting = asyncio.ensure_future(engine.connect().start())
            await asyncio.sleep(0.01)
            with pytest.raises(sqlalchemy.exc.TimeoutError, match="size 1 overflow 1 reached"):
                await engine.connect()
            answered.set()
            await (await connecting).close()
        await engine.dispose()

    run(main())
    [exhausted] = recording.ended[0].events
    assert (1, 1) == tuple(exhausted.attributes[f"async_sqla.pool.{name}"] for name in ("size", "overflow"))


def test_names(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    Names are the pool's own or the conventions' default, unique, and free again when an engine is gone.
    """
    measured()

    def names() -> list[str]:
        return sorted({dict(attributes)[NAME] for attributes in points(reader, "db.client.connection.count")})

    address = "postgresql+asyncpg://user:canary@db.example:5433/shop"
    engines = [create_async_engine(address) for _ in range(3)]
    engines.append(create_async_engine(address, pool_logging_name="mine"))
    engines.append(create_async_engine(MEMORY))
    expected = [f"db.example:5433/shop{suffix}" for suffix in ("", "#2", "#3")]
    assert [*expected, "mine", "sqlite"] == names()
    del engines[1]
    gc.collect()
    assert [expected[0], expected[2], "mine", "sqlite"] == names()
    engines.append(create_async_engine(address))
    assert [*expected, "mine", "sqlite"] == names()


def test_failing_pool_layer(
    measured: Any, reader: InMemoryMetricReader, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A pool layer that fails leaves the checkouts alone, and the engine layer too; once it is off, it counts no more.
    """
    from otel_async_sqla_agent._pool import PoolState

    def fail(*args: Any) -> None:
        raise RuntimeError("pool layer")

    monkeypatch.setattr(PoolState, "_returned", fail)
    measured(spans="statement")

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        for _ in range(10):
            async with engine.connect() as connection:
                assert 1 == (await connection.execute(text("SELECT 1"))).scalar()
        assert {} == points(reader, "db.client.connection.count")
        await engine.dispose()

    run(main())
    assert ["SELECT"] * 10 == recording.names


def test_failure_counts_for_the_pool_layer(
    measured: Any, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A pool layer that fails at every connect does not switch the engine layer off.
    """
    from otel_async_sqla_agent._pool import EnginePools

    def fail(*args: Any) -> None:
        raise RuntimeError("pool layer")

    monkeypatch.setattr(EnginePools, "created", fail)
    measured(spans="statement")

    async def main() -> None:
        engine = create_async_engine(MEMORY, poolclass=NullPool)
        for _ in range(10):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))

    run(main())
    assert ["SELECT"] * 10 == recording.names


def test_uninstrument_while_out(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    A connection that is out while the agent is switched off comes back to its pool, which is what it was.
    """

    async def main() -> None:
        engine = pooled(url)
        before = set(vars(engine.sync_engine.pool)), set(vars(engine.sync_engine.pool._pool))
        measured()
        async with engine.connect() as connection:
            otel_async_sqla_agent.uninstrument()
            await connection.execute(text("SELECT 1"))
        assert 1 == engine.sync_engine.pool.checkedin()
        assert before == (set(vars(engine.sync_engine.pool)), set(vars(engine.sync_engine.pool._pool)) - {"_queue"})
        await engine.dispose()

    run(main())


def test_without_a_meter_provider(recording: Recording, url: str) -> None:
    """
    Without a MeterProvider the spans have the pool's facts all the same.
    """
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider, spans="statement")

    async def main() -> None:
        engine = pooled(url)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    run(main())
    assert "new" == recording.ended[0].attributes["async_sqla.pool.source"]

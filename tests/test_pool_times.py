from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy.exc
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from otel_async_sqla_agent import _engine_state, _pool
from tests.conftest import run
from tests.recording import Recording, points
from tests.test_engine import pooled
from tests.test_pool import NAME, counted

SOURCE = "async_sqla.pool.source"


class Clock:
    """
    What the agent takes for the time: it goes on when the test says so.
    """

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> Callable[..., None]:
        """
        Return a listener in which some seconds go by.
        """

        def listener(*_args: Any, **_options: Any) -> None:
            self.seconds += seconds

        return listener


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_pool, "perf_counter", clock)
    monkeypatch.setattr(_engine_state, "perf_counter", clock)
    return clock


async def select(engine: AsyncEngine, sql: str = "SELECT 1") -> None:
    async with engine.connect() as connection:
        await connection.execute(text(sql))


def test_what_each_time_is(
    clock: Clock, measured: Callable[..., None], reader: InMemoryMetricReader, recording: Recording, url: str
) -> None:
    """
    The wait is the time in the queue, of the connect and of all else until the connection is there; the rest is use.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0, pool_logging_name="mine")
        event.listen(engine.sync_engine, "do_connect", clock.advance(3))
        event.listen(engine.sync_engine, "checkout", clock.advance(1))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            clock.seconds += 20
            waiting = asyncio.ensure_future(select(engine))
            await asyncio.sleep(0)
            clock.seconds += 7
        await waiting
        await engine.dispose()

    run(main())
    found = {}
    for name in ("wait_time", "create_time", "use_time"):
        [(attributes, point)] = points(reader, f"db.client.connection.{name}").items()
        found[name] = dict(attributes), point.count, point.sum, point.max
    mine = {NAME: "mine"}
    assert {
        "wait_time": (mine, 2, 12.0, 8.0),
        "create_time": (mine, 1, 3.0, 3.0),
        "use_time": (mine, 2, 27.0, 27.0),
    } == found
    assert [4.0, 8.0] == [span.attributes["async_sqla.pool.wait_time"] for span in recording.ended]


def test_nothing_is_recorded_where_it_is_suppressed(
    measured: Callable[..., None], reader: InMemoryMetricReader, url: str
) -> None:
    """
    OpenTelemetry's switch silences the times, and the counts stay true.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        with suppress_instrumentation():
            await select(engine)
        assert (0, 1) == counted(reader)
        for name in ("wait_time", "create_time", "use_time"):
            assert {} == points(reader, f"db.client.connection.{name}")
        await engine.dispose()

    run(main())


async def invalidate_softly(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: sync.connection._connection_record.invalidate(soft=True))


async def fail_the_ping(engine: AsyncEngine) -> None:
    def ping(_connection: Any) -> bool:
        engine.dialect.do_ping = original  # type: ignore[method-assign]
        return False

    original = engine.dialect.do_ping
    engine.dialect.do_ping = ping  # type: ignore[method-assign]


async def make_old(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: setattr(sync.connection._connection_record, "starttime", 0))


@pytest.mark.parametrize("reason", [invalidate_softly, fail_the_ping, make_old])
def test_record_with_another_connection(
    reason: Any, measured: Callable[..., None], reader: InMemoryMetricReader, recording: Recording, url: str
) -> None:
    """
    A connection that has been made anew for a checkout is new, though the pool's record of it is not.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url, pool_size=1, pool_pre_ping=True, pool_recycle=3600)
        await select(engine)
        await reason(engine)
        await select(engine)
        await select(engine)
        assert (0, 1) == counted(reader)
        await engine.dispose()

    run(main())
    assert ["new", "new", "idle"] == [span.attributes[SOURCE] for span in recording.ended]
    [created] = points(reader, "db.client.connection.create_time").values()
    assert 2 == created.count


def test_checkout_that_fails_after_the_wait(
    measured: Callable[..., None], reader: InMemoryMetricReader, recording: Recording, url: str
) -> None:
    """
    A request that waited and could not connect then does not make the next one a request that waited.
    """
    measured(spans="statement")

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0)
        async with engine.connect() as connection:
            waiting = asyncio.ensure_future(select(engine))
            await asyncio.sleep(0)
            event.listen(engine.sync_engine, "do_connect", refuse)
            await connection.invalidate()
        with pytest.raises(ConnectionRefusedError):
            await waiting
        assert (0, 0) == counted(reader)
        event.remove(engine.sync_engine, "do_connect", refuse)
        await select(engine)
        await engine.dispose()

    run(main())
    assert ["new"] == [span.attributes[SOURCE] for span in recording.ended]


def test_one_who_comes_later_and_is_served_first(measured: Callable[..., None], recording: Recording, url: str) -> None:
    """
    Who asks just when a connection comes back has not waited if it gets it before those who have.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0)
        held = await engine.connect()
        waiting = asyncio.ensure_future(select(engine))
        await asyncio.sleep(0)
        await held.close()
        await select(engine, "SELECT 2 FROM (SELECT 2) AS later")
        await waiting
        await engine.dispose()

    run(main())
    first, second = recording.ended
    # SQLAlchemy up to 2.0.44 serves in turn below Python 3.12, where each request waits in a task of its own.
    expected = "queued" if first.name == "SELECT" else "idle"
    assert (expected, "queued") == (first.attributes[SOURCE], second.attributes[SOURCE])


def test_longest_holders(clock: Clock, measured: Callable[..., None], recording: Recording, url: str) -> None:
    """
    A time-out tells of the five who have held a connection for longest, and how many wait besides.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url, pool_size=2, max_overflow=5, pool_timeout=0.05)
        held = []
        for number in range(7):
            with recording.tracer.start_as_current_span(f"holder {number}"):
                held.append(await engine.connect())
            clock.seconds += 1
        waiting = [asyncio.ensure_future(select(engine)) for _ in range(3)]
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [sqlalchemy.exc.TimeoutError] * 3 == [type(error) for error in errors]
        for connection in held:
            await connection.close()
        await engine.dispose()

    run(main())
    events = [span.events[0].attributes for span in recording.ended if span.name == "pool timeout"]
    assert [2, 1, 0] == [each["async_sqla.pool.waiters"] for each in events]
    assert [(2, 5)] * 3 == [(each["async_sqla.pool.size"], each["async_sqla.pool.overflow"]) for each in events]
    assert [tuple(f"holder {number}" for number in range(5))] * 3 == [
        each["async_sqla.pool.holder.span_names"] for each in events
    ]
    assert [(7.0, 6.0, 5.0, 4.0, 3.0)] * 3 == [each["async_sqla.pool.holder.seconds"] for each in events]


def test_detached_while_it_is_checked_out(
    measured: Callable[..., None], reader: InMemoryMetricReader, recording: Recording, url: str, caplog: Any
) -> None:
    """
    A connection that a listener detaches at its checkout has left the pool, and is no failure of the agent's.
    """
    measured(spans="statement")

    async def main() -> None:
        engine = pooled(url)
        event.listen(engine.sync_engine, "checkout", lambda _connection, _record, fairy: fairy.detach())
        for _ in range(6):
            await select(engine)
            assert (0, 0) == counted(reader)
        await engine.dispose()

    run(main())
    assert ["SELECT"] * 6 == recording.names
    [waits] = points(reader, "db.client.connection.wait_time").values()
    assert (6, []) == (waits.count, caplog.records)

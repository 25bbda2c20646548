from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AssertionPool, AsyncAdaptedQueuePool, NullPool, StaticPool
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import Recording, points
from tests.test_engine import MEMORY, pooled
from tests.test_pool import NAME, counted, value


def pool_names(reader: InMemoryMetricReader, metric: str = "count") -> set[str]:
    return {dict(attributes)[NAME] for attributes in points(reader, f"db.client.connection.{metric}")}


def test_instrumented_again(recording: Recording, reader: InMemoryMetricReader, url: str) -> None:
    """
    After `uninstrument()` no pool is told of, and after a second `instrument()` with the same MeterProvider all are,
    under the same names and with the connections that are idle in them.
    """
    provider = MeterProvider([reader], shutdown_on_exit=False)

    async def main() -> None:
        engine = pooled(url, pool_logging_name="mine")
        otel_async_sqla_agent.instrument(tracer_provider=recording.provider, meter_provider=provider)
        async with engine.connect(), engine.connect():
            pass
        assert (0, 2) == counted(reader, "mine")
        otel_async_sqla_agent.uninstrument()
        assert set() == pool_names(reader)
        otel_async_sqla_agent.instrument(tracer_provider=recording.provider, meter_provider=provider)
        assert (0, 2) == counted(reader, "mine")
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            assert (1, 1) == counted(reader, "mine")
        await engine.dispose()

    run(main())
    assert ["idle"] == [
        span.attributes["async_sqla.pool.source"] for span in recording.ended if span.name.startswith("SELECT")
    ]


def test_engines_made_while_collecting(measured: Any, reader: InMemoryMetricReader, caplog: Any) -> None:
    """
    Engines come and go in one thread while the exporter's asks for the counts.
    """
    measured()
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            reader.get_metrics_data()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    exporter = threading.Thread(target=collect)
    exporter.start()
    try:
        engines = [create_async_engine(MEMORY) for _ in range(50)]
        for engine in engines * 6:
            engine.sync_engine.pool = engine.sync_engine.pool.recreate()
    finally:
        done.set()
        exporter.join()
        sys.setswitchinterval(interval)
    assert [] == [record.message for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.filterwarnings("ignore:The garbage collector")
def test_collected_connection(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    A connection that the garbage collector takes back is counted at once, but measured at the next checkout: the
    collector may run inside of the metrics SDK, while that holds the lock which a measurement needs.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        leaked = await engine.raw_connection()
        driver_connection = leaked.driver_connection
        cycle = [leaked]
        cycle.append(cycle)
        del leaked, cycle
        assert (1, 0) == counted(reader)
        gc.collect()
        assert (0, 0) == counted(reader)
        assert None is value(reader, "use_time")
        async with engine.connect():
            assert 1 == value(reader, "use_time")
        assert 2 == value(reader, "use_time")
        await driver_connection.close()
        await engine.dispose()

    run(main())


def test_shared_connection(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    StaticPool gives one connection to all who ask. SQLAlchemy tells of the first return alone; no count sticks.
    """
    measured()
    seen = []

    async def main() -> None:
        engine = create_async_engine(MEMORY, poolclass=StaticPool)
        for _ in range(2):
            first = await engine.connect()
            await asyncio.sleep(0.02)
            second = await engine.connect()
            seen.append(counted(reader))
            await first.close()
            await second.close()
            seen.append(counted(reader))
        await engine.dispose()
        seen.append(counted(reader))

    run(main())
    assert [(1, 0), (0, 1), (1, 0), (0, 1), (0, 0)] == seen
    [use] = points(reader, "db.client.connection.use_time").values()
    assert (2, True) == (use.count, use.min >= 0.02)


def test_connection_replaced_in_a_static_pool(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    What StaticPool has dropped is not counted any more, and the agent does not keep it.
    """
    measured()

    async def main() -> None:
        engine = create_async_engine(url, poolclass=StaticPool)
        async with engine.connect() as connection:
            fairy = await connection.get_raw_connection()
            driver_connection = fairy.driver_connection
            record = weakref.ref(fairy._connection_record)
            record().invalidate(soft=True)
            del fairy
        async with engine.connect():
            gc.collect()
            assert None is record()
            assert (1, 0) == counted(reader)
        assert (0, 1) == counted(reader)
        await driver_connection.close()
        await engine.dispose()

    run(main())


def test_pool_disposed_of_by_itself(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    A pool that goes on after its own `dispose()` leaves nothing behind in the agent.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        records = []
        for _ in range(3):
            async with engine.connect() as connection:
                records.append(weakref.ref((await connection.get_raw_connection())._connection_record))
            await greenlet_spawn(engine.sync_engine.pool.dispose)
        async with engine.connect():
            gc.collect()
            assert [None] * 3 == [record() for record in records]
            assert (1, 0) == counted(reader)
        await engine.dispose()

    run(main())


@pytest.mark.parametrize(
    "options", [pytest.param({"pool_size": 1}, id="overflow"), pytest.param({"poolclass": NullPool}, id="null")]
)
def test_close_that_fails(options: dict[str, Any], measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    A connection whose close is cancelled on its way back does not come back, and counts no more.
    """
    measured()

    async def main() -> None:
        engine = create_async_engine(url, **options) if "poolclass" in options else pooled(url, **options)
        driver_connections = []

        def cancel(dbapi_connection: Any, record: Any) -> None:
            driver_connections.append(record.driver_connection)
            raise asyncio.CancelledError

        first, second = await engine.connect(), await engine.connect()
        sqlalchemy.event.listen(engine.sync_engine, "close", cancel)
        if "pool_size" in options:
            await first.close()
        with pytest.raises(asyncio.CancelledError):
            await second.close()
        sqlalchemy.event.remove(engine.sync_engine, "close", cancel)
        if "pool_size" not in options:
            await first.close()
        assert (0, 1 if "pool_size" in options else 0) == counted(reader)
        for driver_connection in driver_connections:
            await driver_connection.close()
        await engine.dispose()

    run(main())


def test_pool_timeout_of_another_engine(
    measured: Any, reader: InMemoryMetricReader, recording: Recording, url: str
) -> None:
    """
    A connect that waits in vain for another engine's pool is a time-out of that pool, not of both.
    """
    measured(spans="statement")

    async def main() -> None:
        secrets = pooled(url, pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="secrets")
        engine = pooled(url, pool_logging_name="mine")

        @sqlalchemy.event.listens_for(engine.sync_engine, "do_connect")
        def ask_for_the_password(*args: Any) -> None:
            await_only(secrets.connect().start())

        async with secrets.connect():
            with pytest.raises(PoolTimeoutError):
                await engine.connect()
        await secrets.dispose()

    run(main())
    assert {"secrets"} == pool_names(reader, "timeouts")
    assert ["pool timeout"] == recording.names


def test_shared_pool(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Engines with one pool are one pool, which is told of as long as one of them lives.
    """
    measured()

    async def main() -> None:
        first = pooled(url, pool_logging_name="ours")
        second = create_async_engine(url, pool=first.sync_engine.pool)
        async with first.connect(), second.connect():
            assert (2, 0) == counted(reader)
        for metric in ("count", "max", "create_time", "wait_time", "use_time"):
            assert {"ours"} == pool_names(reader, metric)
        del first
        gc.collect()
        assert (0, 2) == counted(reader)
        await second.dispose()
        assert (0, 0) == counted(reader)
        otel_async_sqla_agent.uninstrument()
        assert not [name for name in vars(second.sync_engine.pool) if "otel" in name or name == "connect"]

    run(main())


def test_uninstrument_with_a_shared_pool(measured: Any, reader: InMemoryMetricReader, url: str, caplog: Any) -> None:
    """
    Engines with one pool are given back one after the other.
    """
    measured()
    first = pooled(url)
    second = create_async_engine(url, pool=first.sync_engine.pool)
    otel_async_sqla_agent.uninstrument()
    assert (set(), []) == (pool_names(reader), caplog.records)
    assert not [name for engine in (first, second) for name in vars(engine.dialect) if name.startswith("do_")]


def test_assertion_pool(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    AssertionPool has one connection, and keeps it.
    """
    measured()

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AssertionPool)
        async with engine.connect():
            assert (1, 0) == counted(reader)
            with pytest.raises(AssertionError):
                await engine.connect()
        assert (0, 1) == counted(reader)
        assert (1, 0, 1) == tuple(value(reader, name) for name in ("idle.max", "idle.min", "max"))
        await engine.dispose()

    run(main())


def test_pool_of_a_forked_process(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    `dispose(close=False)` leaves the connections to the parent process; they count until they are collected.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        async with engine.connect() as connection:
            driver_connection = (await connection.get_raw_connection()).driver_connection
        await greenlet_spawn(engine.sync_engine.dispose, close=False)  # what AsyncEngine has got since SQLAlchemy 2
        gc.collect()
        assert (0, 0) == counted(reader)
        async with engine.connect():
            assert (1, 0) == counted(reader)
        await driver_connection.close()
        await engine.dispose()

    run(main())


def test_dropped_engine_whose_connection_goes_on(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    A driver's connection that the application keeps does not keep the engine that it has come from.
    """
    measured()

    async def main() -> None:
        engine = pooled(url)
        raw = await engine.raw_connection()
        driver_connection = raw.driver_connection
        raw.detach()
        del engine, raw
        gc.collect()
        assert set() == pool_names(reader)
        await driver_connection.execute("SELECT 1")
        await driver_connection.close()

    run(main())


@pytest.mark.parametrize("poolclass", [AsyncAdaptedQueuePool, StaticPool, AssertionPool])
def test_activated_while_idle(poolclass: Any, measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Activated while a connection is idle, the agent counts it.
    """

    async def main() -> None:
        engine = create_async_engine(url, poolclass=poolclass)
        async with engine.connect():
            pass
        measured()
        assert (0, 1) == counted(reader)
        await engine.dispose()
        assert (0, 0) == counted(reader)

    run(main())


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool])
def test_activated_late(poolclass: Any, measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Activated while a connection is out, the agent learns of it when it comes back; no count is negative.
    """

    async def main() -> None:
        engine = create_async_engine(url, poolclass=poolclass)
        async with engine.connect():
            measured()
            assert (0, 0) == counted(reader)
        assert (0, int(poolclass is StaticPool)) == counted(reader)
        assert None is value(reader, "use_time")
        async with engine.connect():
            assert (1, 0) == counted(reader)
        await engine.dispose()

    run(main())

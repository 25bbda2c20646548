from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
import sqlalchemy.exc
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import otel_async_sqla_agent
from integration.conftest import Receiver
from tests.conftest import run
from tests.recording import Recording

TASKS = 200


@pytest.fixture
def provider(receiver: Receiver, recording: Recording) -> Any:
    """
    Export to the receiver every 20 ms, from the exporter's own thread, while the storm goes on.
    """
    exporter = OTLPMetricExporter(f"{receiver.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=20)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider, meter_provider=provider)
    yield provider
    provider.shutdown()


def pool_values(receiver: Receiver) -> dict[str, int]:
    """
    Return the counts of the only pool as the receiver has them.
    """
    metrics = receiver.metrics()
    values = {
        dict(attributes)["db.client.connection.state"]: point.as_int
        for attributes, point in metrics["db.client.connection.count"].items()
    }
    [pending] = metrics["db.client.connection.pending_requests"].values()
    return {**values, "pending": pending.as_int}


async def work(engine: AsyncEngine, chance: random.Random, harsh: bool, old_pools: list[Any]) -> None:
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            deed = chance.random()
            if deed < 0.1:
                await connection.execute(text("SELECT nothing FROM nowhere"))
            elif deed < 0.2:
                await asyncio.sleep(chance.random() / 8)
            elif deed < 0.3 and harsh:
                await connection.invalidate()
            elif deed < 0.4 and harsh:
                (await connection.get_raw_connection()).detach()
            elif deed < 0.43 and harsh:
                old_pools.append(engine.sync_engine.pool)
                await engine.dispose()
    except sqlalchemy.exc.SQLAlchemyError:
        pass


async def storm(engine: AsyncEngine, harsh: bool) -> None:
    """
    Let 200 tasks hammer the pool, of which some are cancelled at random moments.
    """
    chance = random.Random(7)
    old_pools: list[Any] = []
    tasks = [asyncio.ensure_future(work(engine, chance, harsh, old_pools)) for _ in range(TASKS)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.002)
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for pool in old_pools:
        await sqlalchemy.util.concurrency.greenlet_spawn(pool.dispose)


def make_engine(url: str) -> AsyncEngine:
    return create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=5, max_overflow=0, pool_timeout=0.2)


async def reconnect(engine: AsyncEngine) -> None:
    """
    Check out all connections once: a pool counts those that a cancelled statement has closed among its idle ones.
    """
    async with AsyncExitStack() as stack:
        for _ in range(engine.sync_engine.pool.size()):  # type: ignore[attr-defined]
            await stack.enter_async_context(engine.connect())


def nothing_was_negative(receiver: Receiver) -> bool:
    return all(
        point.as_int >= 0
        for request in receiver.metric_requests()
        for resource in request.pbreq.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith("db.client.connection.") and metric.WhichOneof("data") == "sum"
        for point in metric.sum.data_points
    )


def some_timed_out(receiver: Receiver, recording: Recording) -> bool:
    """
    Tell whether the storm had time-outs, and each of them a span.
    """
    [timeouts] = receiver.metrics()["db.client.connection.timeouts"].values()
    return 0 < int(timeouts.as_int) == recording.names.count("pool timeout")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # cancelled connects, also without us
@pytest.mark.parametrize("harsh", [False, True], ids=["gentle", "harsh"])
def test_counts_equal_the_servers(
    harsh: bool, postgresql: str, provider: MeterProvider, receiver: Receiver, recording: Recording
) -> None:
    """
    After a storm of cancellations, time-outs, invalidations, detaches and disposals the exported counts are those
    of `pg_stat_activity`, and without the last three those of `pool.status()`; nothing was negative, nobody waits.
    """

    async def main() -> None:
        name = f"storm {'harsh' if harsh else 'gentle'}"
        engine = make_engine(postgresql).execution_options()
        watcher = create_async_engine(postgresql, pool_logging_name="watcher")
        _name_sessions(engine, name)
        await storm(engine, harsh)
        await reconnect(engine)
        async with engine.connect() as held:
            await held.execute(text("SELECT 1"))
            open_sessions = await _sessions(watcher, name)
            await watcher.dispose()
            provider.force_flush()
            values = _of_other_pools(receiver, "watcher")
            assert (1, 0) == (values["used"], values["pending"])
            assert open_sessions == values["used"] + values["idle"]
            if not harsh:
                pool: Any = engine.sync_engine.pool
                assert (pool.checkedout(), pool.checkedin()) == (values["used"], values["idle"])
        await engine.dispose()
        provider.force_flush()
        assert {"used": 0, "idle": 0, "pending": 0} == _of_other_pools(receiver, "watcher")

    run(main())
    assert some_timed_out(receiver, recording)
    assert nothing_was_negative(receiver)


def _name_sessions(engine: AsyncEngine, name: str) -> None:
    @sqlalchemy.event.listens_for(engine.sync_engine, "do_connect")
    def do_connect(dialect: Any, record: Any, args: Any, options: dict[str, Any]) -> None:
        options["server_settings"] = {"application_name": name}


async def _sessions(watcher: AsyncEngine, name: str) -> int:
    """
    Ask the server, once it has noticed which sessions have ended.
    """
    # The server is shared with other processes, the database is not.
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()"
    )
    seen = [-1]
    async with watcher.connect() as connection:
        while len(seen) < 100 and (len(seen) < 4 or len(set(seen[-3:])) > 1):
            await asyncio.sleep(0.05)
            seen.append((await connection.execute(query, {"name": name})).scalar_one())
            await connection.rollback()
    return seen[-1]


def _of_other_pools(receiver: Receiver, name: str) -> dict[str, int]:
    metrics = receiver.metrics()

    def of_pool(metric: str) -> dict[str, int]:
        return {
            dict(attributes).get("db.client.connection.state", "pending"): point.as_int
            for attributes, point in metrics[metric].items()
            if dict(attributes)["db.client.connection.pool.name"] != name
        }

    return {**of_pool("db.client.connection.count"), **of_pool("db.client.connection.pending_requests")}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harsh", [False, True], ids=["gentle", "harsh"])
def test_storm_on_aiosqlite(
    harsh: bool, url: str, provider: MeterProvider, receiver: Receiver, recording: Recording
) -> None:
    """
    The same on aiosqlite: afterwards nothing is out, and without the last three the counts are the pool's own.
    """

    async def main() -> None:
        engine = make_engine(url)
        await storm(engine, harsh)
        await reconnect(engine)
        provider.force_flush()
        values = pool_values(receiver)
        assert (0, 0) == (values["used"], values["pending"])
        pool: Any = engine.sync_engine.pool
        if not harsh:
            assert (pool.checkedout(), pool.checkedin()) == (values["used"], values["idle"])
        await engine.dispose()

    run(main())
    assert some_timed_out(receiver, recording)
    assert nothing_was_negative(receiver)

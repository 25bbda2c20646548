from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import insert, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from otel_async_sqla_agent import _statement
from tests.conftest import run
from tests.recording import Recording, points
from tests.test_engine import MEMORY, metadata, pooled, select_one, tag

DURATION = "db.client.operation.duration"


def counts(reader: InMemoryMetricReader) -> dict[str, int]:
    """
    Return how often each summary has been measured.
    """
    return {dict(attributes)["db.query.summary"]: point.count for attributes, point in points(reader, DURATION).items()}


def test_duration(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    Each statement is measured once, in seconds, with the conventions' buckets and stable attributes, never the text.
    """
    measured()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all, checkfirst=False)
            await connection.execute(insert(tag), [{"name": "a"}, {"name": "b"}])
            for _ in range(3):
                await connection.execute(text("SELECT name FROM tag"))
            with pytest.raises(OperationalError):
                await connection.execute(text("SELECT * FROM nowhere"))
        await engine.dispose()

    run(main())
    assert {"CREATE TABLE tag": 1, "BATCH INSERT tag": 1, "SELECT tag": 3, "SELECT nowhere": 1} == counts(reader)
    by_summary = {dict(key)["db.query.summary"]: (dict(key), point) for key, point in points(reader, DURATION).items()}
    attributes, point = by_summary["SELECT tag"]
    assert {"db.system.name": "sqlite", "db.query.summary": "SELECT tag"} == attributes
    assert (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10) == tuple(point.explicit_bounds)
    assert 0 < point.sum < 10
    failed, _ = by_summary["SELECT nowhere"]
    assert failed["error.type"] in ("1", "sqlite3.OperationalError")
    assert failed["error.type"] == failed.get("db.response.status_code", failed["error.type"])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"spans": "none"}, id="no-spans"),
        pytest.param({"exclude": "select"}, id="excluded"),
        pytest.param({"require_parent": True}, id="no-parent"),
        pytest.param({"min_duration_ms": 60_000}, id="too-fast"),
        pytest.param({"provider": Recording(ALWAYS_OFF).provider}, id="unsampled"),
    ],
)
def test_duration_without_span(
    options: dict[str, Any], measured: Any, reader: InMemoryMetricReader, recording: Recording
) -> None:
    """
    Metrics are complete where spans are left out.
    """
    measured(**options)
    run(select_one(create_async_engine(MEMORY)))
    assert "SELECT" not in recording.names
    assert {"SELECT": 1} == counts(reader)


def test_duration_has_the_span_as_exemplar(measured: Any, reader: InMemoryMetricReader, recording: Recording) -> None:
    """
    The duration is recorded while the statement's span is the current one.
    """
    measured(spans="statement")
    run(select_one(create_async_engine(MEMORY)))
    [point] = points(reader, DURATION).values()
    [span] = recording.ended
    assert [span.context.span_id] == [exemplar.span_id for exemplar in point.exemplars]


def test_late_span_as_exemplar(measured: Any, reader: InMemoryMetricReader, recording: Recording) -> None:
    """
    A span that is made only because its statement has failed is the exemplar of its duration all the same.
    """
    measured(spans="statement", min_duration_ms=60_000)

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        with recording.tracer.start_as_current_span("caller"), pytest.raises(OperationalError):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT * FROM nowhere"))
        await engine.dispose()

    run(main())
    [point] = points(reader, DURATION).values()
    span, _ = recording.ended
    assert ("SELECT nowhere", [span.context.span_id]) == (span.name, [each.span_id for each in point.exemplars])


def test_suppressed(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    OpenTelemetry's switch silences the duration too.
    """
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    measured()
    with suppress_instrumentation():
        run(select_one(create_async_engine(MEMORY)))
    assert {} == counts(reader)


class Watched(Mapping[str, str]):
    """
    The attributes of a database, which note that a dictionary has been built from them.
    """

    def __init__(self) -> None:
        self.built = 0

    def __iter__(self) -> Iterator[str]:
        self.built += 1
        return iter(["db.system.name"])

    def __getitem__(self, key: str) -> str:
        return "sqlite"

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("with_provider", [False, True])
def test_nothing_is_built_without_a_meter_provider(
    with_provider: bool, measured: Any, agent: Any, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Without a MeterProvider not even the dictionary of the duration's attributes is built.
    """
    watched = Watched()
    monkeypatch.setattr(_statement, "metric_attributes", lambda database: watched)
    (measured if with_provider else agent)(spans="statement")
    run(select_one(create_async_engine(MEMORY)))
    assert ["SELECT"] == recording.names
    assert int(with_provider) == watched.built


def test_switched_off(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    With METRICS=false there is no instrument at all.
    """
    measured(metrics=False)
    run(select_one(create_async_engine(MEMORY)))
    assert reader.get_metrics_data() is None


def test_bounded_cardinality(measured: Any, reader: InMemoryMetricReader) -> None:
    """
    Beyond 500 summaries the rest is one series.
    """
    measured()

    async def main() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.connect() as connection:
            for number in range(503):
                await connection.execute(text(f"CREATE TABLE t{number} (x)"))
        await engine.dispose()

    run(main())
    assert {**{f"CREATE TABLE t{number}": 1 for number in range(500)}, "_OTHER": 3} == counts(reader)


def shape(metric: Any) -> tuple[Any, ...]:
    """
    Return a metric's unit, whether it is a sum and a monotonic one, its buckets and the keys of its attributes.
    """
    [*points] = metric.data.data_points
    keys = {key for point in points for key in point.attributes}
    bounds = getattr(points[0], "explicit_bounds", None)
    return metric.unit, getattr(metric.data, "is_monotonic", None), bounds and tuple(bounds), keys


def test_instruments(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Each metric has the conventions' name, unit and kind, and no attribute but theirs.
    """
    measured()
    found = {}

    async def main() -> None:
        engine = pooled(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            with pytest.raises(PoolTimeoutError):
                await engine.connect()
        data = reader.get_metrics_data()
        assert data is not None
        [scope] = data.resource_metrics[0].scope_metrics
        found.update({metric.name.removeprefix("db.client."): shape(metric) for metric in scope.metrics})
        await engine.dispose()

    run(main())
    buckets, pool = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10), "db.client.connection.pool.name"
    assert {
        "operation.duration": ("s", None, buckets, {"db.system.name", "db.namespace", "db.query.summary"}),
        "connection.count": ("{connection}", False, None, {pool, "db.client.connection.state"}),
        "connection.idle.max": ("{connection}", False, None, {pool}),
        "connection.idle.min": ("{connection}", False, None, {pool}),
        "connection.max": ("{connection}", False, None, {pool}),
        "connection.pending_requests": ("{request}", False, None, {pool}),
        "connection.timeouts": ("{timeout}", True, None, {pool}),
        "connection.create_time": ("s", None, buckets, {pool}),
        "connection.wait_time": ("s", None, buckets, {pool}),
        "connection.use_time": ("s", None, buckets, {pool}),
    } == found


def test_gather(measured: Any, reader: InMemoryMetricReader, url: str) -> None:
    """
    Concurrent statements are measured each for itself.
    """
    measured()

    async def one(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def main() -> None:
        engine = pooled(url)
        await asyncio.gather(*[one(engine) for _ in range(20)])
        await engine.dispose()

    run(main())
    assert {"SELECT": 20} == counts(reader)

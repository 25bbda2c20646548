from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    StaticSampler,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import Recording, database_attributes, points
from tests.test_engine import MEMORY


class Broken(RuntimeError):
    pass


class BrokenSampler(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        raise Broken("sampler")

    def get_description(self) -> str:
        return "broken"


class BrokenAtStart(SpanProcessor):
    def on_start(self, *args: Any, **kwargs: Any) -> None:
        raise Broken("on_start")


class BrokenAtEnd(SpanProcessor):
    def on_end(self, *args: Any, **kwargs: Any) -> None:
        raise Broken("on_end")


class BrokenExporter(SpanExporter):
    def export(self, spans: Any) -> Any:
        raise Broken("export")


def _provider(processor: SpanProcessor | None = None, sampler: Sampler | None = None) -> TracerProvider:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    if processor is not None:
        provider.add_span_processor(processor)
    return provider


class BrokenTracerProvider(TracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
        raise Broken("provider")


async def _queries(count: int) -> list[Any]:
    engine = create_async_engine(MEMORY)
    try:
        async with engine.connect() as connection:
            return [(await connection.execute(text("SELECT 1"))).scalar() for _ in range(count)]
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(lambda: _provider(sampler=BrokenSampler()), id="sampler"),
        pytest.param(lambda: _provider(BrokenAtStart()), id="on-start"),
        pytest.param(lambda: _provider(BrokenAtEnd()), id="on-end"),
        pytest.param(lambda: _provider(SimpleSpanProcessor(BrokenExporter())), id="exporter"),
        pytest.param(lambda: BrokenTracerProvider(shutdown_on_exit=False), id="provider"),
    ],
)
def test_broken_telemetry_leaves_the_query_alone(provider: Any) -> None:
    """
    A provider, sampler, processor or exporter that raises changes no result.
    """
    otel_async_sqla_agent.instrument(tracer_provider=provider())
    assert run(_queries(10)) == [1] * 10


def test_failing_layer_switches_itself_off(caplog: pytest.LogCaptureFixture) -> None:
    """
    Five failures: one log record, five counts, and then the layer is not called any more.
    """
    reader = InMemoryMetricReader()
    calls = []

    class Counting(BrokenSampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            raise Broken("sampler")

    otel_async_sqla_agent.instrument(
        tracer_provider=_provider(sampler=Counting()),
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        mode="engine",  # in `auto` the driver layer steps in
        spans="statement",
    )
    assert run(_queries(10)) == [1] * 10
    assert len(calls) == 5
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert "its engine layer failed; the query was not affected" in record.getMessage()
    [(attributes, point)] = points(reader, "async_sqla.internal_errors").items()
    assert (5, {"async_sqla.layer": "engine", "error.type": "Broken"}) == (point.value, dict(attributes))


def test_broken_meter_provider(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    A MeterProvider that gives no meter costs the metrics, not the spans, and is logged once.
    """

    class BrokenMeterProvider(MeterProvider):
        def get_meter(self, *args: Any, **kwargs: Any) -> Any:
            raise Broken("meter")

    otel_async_sqla_agent.instrument(
        tracer_provider=recording.provider,
        meter_provider=BrokenMeterProvider(shutdown_on_exit=False),
        spans="statement",
    )
    assert [1] * 2 == run(_queries(2))
    assert [1] * 2 == run(_queries(2))
    assert ["SELECT"] * 4 == recording.names
    assert ["otel-async-sqla-agent could not make its instruments; there are no metrics"] == caplog.messages


def test_broken_meter(caplog: pytest.LogCaptureFixture) -> None:
    """
    Counting a failure may fail too.
    """

    class BrokenMeterProvider(MeterProvider):
        def get_meter(self, *args: Any, **kwargs: Any) -> Any:
            raise Broken("meter")

    otel_async_sqla_agent.instrument(
        tracer_provider=_provider(sampler=BrokenSampler()),
        meter_provider=BrokenMeterProvider(shutdown_on_exit=False),
    )
    assert run(_queries(10)) == [1] * 10


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
def test_base_exceptions_are_not_swallowed(hook: str, recording: Recording) -> None:
    """
    What is no `Exception` goes up from telemetry too, and nothing stays current or open behind it.
    """

    class Stop(BaseException):
        pass

    class Stopping(SpanProcessor):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Stop

    setattr(Stopping, hook, stop)
    otel_async_sqla_agent.instrument(tracer_provider=_provider(Stopping()), spans="statement")
    with pytest.raises(Stop):
        run(_queries(1))


def test_base_exception_of_a_meter(
    recording: Recording, measured: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Also where the duration's recording stops with a BaseException, the span is not left current.
    """
    from otel_async_sqla_agent._statement import StatementCore

    class Stop(BaseException):
        pass

    def stop(core: Any, bracket: Any, *args: Any) -> None:
        if bracket.span is not None:
            raise Stop

    monkeypatch.setattr(StatementCore, "_record", stop)
    measured(spans="statement")
    with pytest.raises(Stop):
        run(_queries(1))


def test_log_filter_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A log filter of the application that raises changes no result.
    """

    def fail(record: Any) -> bool:
        raise Broken("filter")

    logger = logging.getLogger("otel_async_sqla_agent")
    otel_async_sqla_agent.instrument(tracer_provider=_provider(sampler=BrokenSampler()))
    create_async_engine(MEMORY)
    logger.addFilter(fail)
    try:
        assert [1] * 10 == run(_queries(10))
    finally:
        logger.removeFilter(fail)


class Dropping(BrokenSampler):
    """
    Drops the attributes of each span, as the SDK's composite samplers do.
    """

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"sampler": "mine"})


SELECT = {"db.system": "sqlite", "db.operation": "SELECT", "db.statement": "SELECT ?"}


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(Dropping(), id="all"),
        pytest.param(ParentBased(Dropping()), id="of-roots"),
        pytest.param(ParentBased(ALWAYS_OFF, local_parent_sampled=Dropping()), id="of-children"),
        pytest.param(type("Mine", (StaticSampler,), {"should_sample": Dropping.should_sample})(True), id="subclass"),
    ],
)
def test_sampler_that_drops_attributes(sampler: Sampler) -> None:
    """
    Attributes that a sampler dropped are set again, also where only some of its spans lose them.
    """
    dropping = Recording(sampler)
    otel_async_sqla_agent.instrument(tracer_provider=dropping.provider, spans="statement")
    sampled = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with use_span(NonRecordingSpan(sampled)):
        run(_queries(1))
    run(_queries(1))
    kept = [database_attributes(span) for span in dropping.ended]
    assert kept
    assert [SELECT] * len(kept) == [{key: span[key] for key in SELECT} for span in kept]


def test_sampler_that_is_replaced() -> None:
    """
    What is known of a tracer's sampler holds for that sampler alone.
    """
    recording = Recording()
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider, spans="statement")

    async def queries() -> None:
        engine = create_async_engine(MEMORY)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            tracers = [each for each in gc.get_objects() if isinstance(each, Tracer)]
            for tracer in tracers:
                if tracer.span_processor is recording.tracer.span_processor:
                    tracer.sampler = Dropping()
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

    run(queries())
    assert [SELECT, {"sampler": "mine", **SELECT}] == [database_attributes(span) for span in recording.ended]


def test_unsampled_spans(recording: Recording) -> None:
    """
    A sampler that samples nothing gets the attributes, and the query runs as ever.
    """
    seen = []

    class Nothing(BrokenSampler):
        def should_sample(self, context: Any, trace_id: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            seen.append((name, args[1]["db.statement"]))
            return SamplingResult(Decision.DROP)

    unsampled = Recording(Nothing())
    otel_async_sqla_agent.instrument(tracer_provider=unsampled.provider, spans="statement")
    assert run(_queries(1)) == [1]
    assert unsampled.started == []
    assert [("SELECT", "SELECT ?")] == seen


def test_failing_count_of_rows(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A span that waits for its statement's end is made also where the rows can't be counted.
    """

    def fail(_cursor: object) -> None:
        raise Broken("rows")

    monkeypatch.setattr("otel_async_sqla_agent._engine_state.known_rows", fail)
    otel_async_sqla_agent.instrument(
        tracer_provider=recording.provider, spans="statement", capture="rows", min_duration_ms=1e-6
    )
    assert [1] == run(_queries(1))
    assert ["SELECT"] == recording.names

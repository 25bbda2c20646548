"""
Execute statements in one variant, a round for each line of standard input.

Run as `python -m benchmarks.worker <url> <variant> <span>`. The first answer is the spans of one statement, as JSON;
each further one is the CPU time of the event loop's thread, in nanoseconds per statement, per checkout and per direct
call of asyncpg.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind, Tracer

from otel_async_sqla_agent._metrics import DURATION_BUCKETS

Recorder = Callable[[int], None]  # is told the number of attributes

STATEMENTS = 100  # of a round: enough to be warm, few enough that the rounds of one turn see the same machine
CACHE_WARMERS = 3  # statements before each round, not counted: other workers have used the CPU meanwhile
WARM_UP = 1_000  # statements before the first round
MODES = {"agent auto": "auto", "agent both": "both", "agent driver": "driver"}  # of the others: `engine`


async def main(url: str, variant: str, span: dict[str, Any]) -> None:
    """
    Serve rounds until standard input ends.
    """
    processor = SpanProcessor()  # does nothing: spans are made, not exported
    sampler = ALWAYS_OFF if variant.endswith("unsampled") else ALWAYS_ON
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    instrument(variant, provider)
    tracer = provider.get_tracer("benchmarks") if variant.startswith("manual") else None

    # Not before, and the module instead of the name: contrib replaces the name.
    import sqlalchemy.ext.asyncio

    record = make_recorder() if variant == "manual metrics" else None
    statement = sqlalchemy.text("SELECT id FROM item WHERE id = :id")
    engine = sqlalchemy.ext.asyncio.create_async_engine(url)
    direct = await asyncpg.connect(url.replace("+asyncpg", ""))
    async with engine.connect() as connection:
        await connection.execute(sqlalchemy.text("CREATE TEMPORARY TABLE item (id integer PRIMARY KEY)"))
        await connection.execute(sqlalchemy.text("INSERT INTO item VALUES (1)"))
        spans: list[ReadableSpan] = []
        processor.on_end = spans.append  # type: ignore[method-assign]
        await execute(connection, statement, tracer, span, 1, record)
        del processor.on_end
        await execute(connection, statement, tracer, span, WARM_UP, record)
        settle()
        answer(json.dumps([{"name": each.name, "attributes": dict(each.attributes or {})} for each in spans]))
        async with engine.connect():
            pass
        for _ in sys.stdin:
            gc.collect()
            await execute(connection, statement, tracer, span, CACHE_WARMERS, record)
            begin = time.thread_time_ns()
            await execute(connection, statement, tracer, span, STATEMENTS, record)
            statements = time.thread_time_ns() - begin
            checkouts, fetches = await check_out(engine, record), await fetch(direct, tracer, span)
            answer(" ".join(str(round_ / STATEMENTS) for round_ in (statements, checkouts, fetches)))
    await direct.close()
    await engine.dispose()


def instrument(variant: str, provider: TracerProvider) -> None:
    """
    Do what the variant does before SQLAlchemy's asyncio extension is imported.
    """
    if variant.startswith("agent"):
        import otel_async_sqla_agent

        meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
        metrics = {"meter_provider": meters} if variant == "agent metrics" else {}
        mode = MODES.get(variant, "engine")
        otel_async_sqla_agent.instrument(mode=mode, tracer_provider=provider, **metrics)
    if variant == "contrib asyncpg":
        from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

        AsyncPGInstrumentor().instrument(tracer_provider=provider)
    elif variant.startswith("contrib"):
        from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

        if variant != "contrib launched":
            # Where the extension is imported later, as under the launcher, each statement starts two spans:
            # https://github.com/open-telemetry/opentelemetry-python-contrib/issues/2149
            import sqlalchemy.ext.asyncio  # noqa: F401
        SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)


def make_recorder() -> Recorder:
    """
    Return what records to the SDK alone: a statement's duration with five attributes, or a pool's time with one.
    """
    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("benchmarks")
    histogram = meter.create_histogram("time", explicit_bucket_boundaries_advisory=DURATION_BUCKETS)
    attributes = {
        5: {
            "db.system.name": "postgresql",
            "db.namespace": "test",
            "server.address": "127.0.0.1",
            "server.port": 5433,
            "db.query.summary": "SELECT item",
        },
        1: {"db.client.connection.pool.name": "127.0.0.1:5433/test"},
    }
    return lambda count: histogram.record(0.0003, attributes[count])


async def execute(
    connection: Any, statement: Any, tracer: Tracer | None, span: dict[str, Any], count: int, record: Recorder | None
) -> None:
    """
    Execute the statement so many times, with a hand-written span around it if there is a tracer.
    """
    if tracer is None:
        for _ in range(count):
            await connection.execute(statement, {"id": 1})
        return
    name, attributes = span["name"], span["attributes"]
    for _ in range(count):
        with tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
            await connection.execute(statement, {"id": 1})
            if record is not None:
                record(5)


async def check_out(engine: Any, record: Recorder | None) -> int:
    """
    Take a connection from the pool and give it back, as often as there are statements in a round.

    Returns:
        CPU time in nanoseconds.
    """
    async with engine.connect():  # not counted: the other side's caches
        pass
    begin = time.thread_time_ns()
    for _ in range(STATEMENTS):
        async with engine.connect():
            if record is not None:
                record(1)
        if record is not None:
            record(1)
    return time.thread_time_ns() - begin


async def fetch(connection: Any, tracer: Tracer | None, span: dict[str, Any]) -> int:
    """
    Execute a statement with asyncpg alone, as often as there are statements in a round.

    With a tracer, each is enclosed by what no instrumentation can do without: its span is started, made the current one
    and ended.

    Returns:
        CPU time in nanoseconds.
    """
    for _ in range(CACHE_WARMERS):
        await connection.fetch("SELECT 1 WHERE 1 = $1", 1)
    begin = time.thread_time_ns()
    if tracer is None:
        for _ in range(STATEMENTS):
            await connection.fetch("SELECT 1 WHERE 1 = $1", 1)
        return time.thread_time_ns() - begin
    name, attributes = span["name"], span["attributes"]
    for _ in range(STATEMENTS):
        current = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        token = context.attach(trace.set_span_in_context(current))
        await connection.fetch("SELECT 1 WHERE 1 = $1", 1)
        context.detach(token)
        current.end()
    return time.thread_time_ns() - begin


def settle() -> None:
    """
    Keep the garbage collector and the scheduler out of the rounds: all workers share one CPU, and take turns.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def answer(line: str) -> None:
    """
    Print a line that the other side is waiting for.
    """
    print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))

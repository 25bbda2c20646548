from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.instrumentation.sqlalchemy import EngineTracer, SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

import otel_async_sqla_agent
from tests.conftest import python, run
from tests.recording import AGENT, Recording
from tests.test_engine import MEMORY, SQLALCHEMY_2, select_one

CONTRIB = "opentelemetry.instrumentation.sqlalchemy"


@pytest.fixture(autouse=True)
def _contrib_off() -> Iterator[None]:
    yield
    if SQLAlchemyInstrumentor().is_instrumented_by_opentelemetry:
        SQLAlchemyInstrumentor().uninstrument()


def instrument_contrib(recording: Recording, **options: Any) -> None:
    # contrib refuses SQLAlchemy 2.1 by its version alone; its code runs there
    SQLAlchemyInstrumentor().instrument(tracer_provider=recording.provider, skip_dep_check=True, **options)


def scopes(recording: Recording) -> list[tuple[str, str]]:
    recording.assert_all_ended()
    return [(span.instrumentation_scope.name, span.name) for span in recording.ended]


OURS = [(AGENT, "connect"), (AGENT, "SELECT")]


@pytest.mark.parametrize("order", list(itertools.permutations(["agent", "contrib", "engine"])), ids="-".join)
def test_one_span_in_any_order(order: tuple[str, ...], agent: Any, recording: Recording) -> None:
    """
    With contrib active, in whatever order all three come, an async engine's statement gives one span, ours.
    """
    engines: list[AsyncEngine] = []
    steps: dict[str, Callable[[], Any]] = {
        "agent": agent,
        "contrib": lambda: instrument_contrib(recording),
        "engine": lambda: engines.append(sqlalchemy_asyncio.create_async_engine(MEMORY)),
    }
    for step in order:
        steps[step]()
    run(select_one(engines[0]))
    assert scopes(recording) == OURS


@pytest.mark.parametrize("late", [False, True], ids=["agent-first", "contrib-first"])
@pytest.mark.parametrize("given", ["sync_engine", "async_engine", "engines"])
def test_provider_given_to_contrib(late: bool, given: str, recording: Recording) -> None:
    """
    `SQLAlchemyInstrumentor().instrument(engine=…, tracer_provider=p)` sends the engine's spans to p.
    """
    elsewhere = Recording()
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    options = {
        "sync_engine": {"engine": engine.sync_engine},
        "async_engine": {"engine": engine},
        "engines": {"engines": [engine.sync_engine]},
    }[given]
    if late and given == "async_engine":
        pytest.skip("without the agent, contrib raises for an AsyncEngine")
    if not late:
        otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    instrument_contrib(recording, **options)
    if late:
        otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    run(select_one(engine))
    assert recording.names == ["connect", "SELECT"]
    assert elsewhere.started == []


def test_provider_given_to_contrib_for_all(recording: Recording) -> None:
    """
    `SQLAlchemyInstrumentor().instrument(tracer_provider=p)` sends the spans of async engines made later to p.
    """
    elsewhere = Recording()
    otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    instrument_contrib(recording)
    run(select_one(sqlalchemy_asyncio.create_async_engine(MEMORY)))
    assert scopes(recording) == OURS
    assert elsewhere.started == []


def test_provider_given_although_contrib_refuses(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The provider given for an async engine is used also where contrib refuses SQLAlchemy's version.
    """
    elsewhere = Recording()
    otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    monkeypatch.setattr(SQLAlchemyInstrumentor, "_check_dependency_conflicts", lambda self: _Conflict())
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    SQLAlchemyInstrumentor().instrument(engine=engine.sync_engine, tracer_provider=recording.provider)
    assert not SQLAlchemyInstrumentor().is_instrumented_by_opentelemetry
    run(select_one(engine))
    assert scopes(recording) == OURS


class _Conflict:
    def __str__(self) -> str:
        return "conflict"

    def _format_message(self, name: str) -> str:
        return f"{name}: conflict"


def test_lost_options_are_named_once(agent: Any, recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    Options of contrib without an equivalent give one warning that names them, and none for sync engines.
    """
    agent()
    instrument_contrib(recording, enable_commenter=True, commenter_options={"a": 1})
    sqlalchemy.create_engine("sqlite://")
    assert caplog.records == []
    sqlalchemy_asyncio.create_async_engine(MEMORY)
    sqlalchemy_asyncio.create_async_engine(MEMORY)
    [record] = caplog.records
    assert "instrument(commenter_options, enable_commenter)" in record.getMessage()


def test_pool_metric_is_not_doubled(agent: Any, recording: Recording) -> None:
    """
    Contrib counts no connection of an async engine.
    """
    reader = InMemoryMetricReader()
    agent()
    instrument_contrib(recording, meter_provider=MeterProvider([reader], shutdown_on_exit=False))
    run(select_one(sqlalchemy_asyncio.create_async_engine(MEMORY)))
    assert reader.get_metrics_data() is None


def test_sync_engines_keep_contrib(agent: Any, recording: Recording) -> None:
    """
    A sync engine has contrib's spans and nothing of ours.
    """
    agent()
    instrument_contrib(recording)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert {CONTRIB} == {scope for scope, _ in scopes(recording)}
    assert len(recording.ended) == 2


def test_sync_engine_object_with_async_dialect(agent: Any, recording: Recording) -> None:
    """
    An async dialect under a plain `create_engine()` is ours as soon as contrib steps aside for it.
    """
    agent()
    instrument_contrib(recording)
    engine = sqlalchemy.create_engine(MEMORY, **({} if SQLALCHEMY_2 else {"future": True}))

    async def main() -> None:
        def select() -> None:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            engine.dispose()

        await greenlet_spawn(select)

    run(main())
    assert scopes(recording) == OURS


@pytest.mark.parametrize("contrib_first", [False, True], ids=["ours-first", "contrib-first"])
def test_our_uninstrument_gives_contrib_its_place(contrib_first: bool, agent: Any, recording: Recording) -> None:
    """
    After our uninstrument() contrib's objects are the identical ones, and contrib works on async engines.
    """
    pristine = vars(EngineTracer)["__init__"], SQLAlchemyInstrumentor.instrument
    if contrib_first:
        instrument_contrib(recording)
        engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
        agent()
    else:
        agent()
        instrument_contrib(recording)
        engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    otel_async_sqla_agent.uninstrument()
    assert pristine == (vars(EngineTracer)["__init__"], SQLAlchemyInstrumentor.instrument)
    assert "instrument" not in vars(SQLAlchemyInstrumentor)
    assert "connect" not in vars(engine.sync_engine)
    run(select_one(engine))
    assert {CONTRIB} == {span.instrumentation_scope.name for span in recording.started}


@pytest.mark.parametrize("contrib_first", [False, True], ids=["ours-first", "contrib-first"])
def test_contribs_uninstrument_leaves_ours(contrib_first: bool, agent: Any, recording: Recording) -> None:
    """
    Contrib's uninstrument() gives the identical originals back, and ours goes on.
    """
    pristine = vars(Engine)["connect"], sqlalchemy.create_engine, sqlalchemy_asyncio.create_async_engine
    if contrib_first:
        instrument_contrib(recording)
        engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
        agent()
    else:
        agent()
        instrument_contrib(recording)
        engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    SQLAlchemyInstrumentor().uninstrument()
    assert pristine == (
        vars(Engine)["connect"],
        sqlalchemy.create_engine,
        sqlalchemy_asyncio.create_async_engine,
    )
    run(select_one(engine))
    run(select_one(sqlalchemy_asyncio.create_async_engine(MEMORY)))
    assert scopes(recording) == OURS * 2


CONTRIB_FIRST = """
import asyncio, collections
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
started, ended = collections.Counter(), collections.Counter()

class Counting(SpanProcessor):
    def on_start(self, span, parent_context=None):
        started[span.instrumentation_scope.name, span.name] += 1
    def on_end(self, span):
        ended[span.instrumentation_scope.name, span.name] += 1

provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(Counting())
SQLAlchemyInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
engines = [create_async_engine("sqlite+aiosqlite://") for _ in range(3)]
import otel_async_sqla_agent
otel_async_sqla_agent.instrument(tracer_provider=provider)

async def main():
    for engine in engines:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        await engine.dispose()

asyncio.run(main())
assert started == ended
print(sorted(ended.items()))
"""


def test_contrib_before_the_import() -> None:
    """
    Contrib that was active before SQLAlchemy's asyncio extension was imported registers each engine twice.
    """
    expected = [((AGENT, "SELECT"), 3), ((AGENT, "connect"), 3)]
    assert [str(expected)] == python(CONTRIB_FIRST).splitlines()


def test_contrib_off_and_on_again(agent: Any, recording: Recording) -> None:
    """
    Contrib that is switched off and on while we are active gets each listener back once.
    """
    instrument_contrib(recording)
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    agent()
    SQLAlchemyInstrumentor().uninstrument()
    instrument_contrib(recording, engine=engine.sync_engine)
    otel_async_sqla_agent.uninstrument()
    assert 1 == len(list(engine.sync_engine.dispatch.before_cursor_execute))
    SQLAlchemyInstrumentor().uninstrument()
    assert 0 == len(list(engine.sync_engine.dispatch.before_cursor_execute))


def test_contrib_off_stays_off(agent: Any, recording: Recording) -> None:
    """
    Contrib that has been switched off in the meantime gets no engine back.
    """
    instrument_contrib(recording)
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    agent()
    SQLAlchemyInstrumentor().uninstrument()
    otel_async_sqla_agent.uninstrument()
    run(select_one(engine))
    assert [] == recording.started


def test_provider_of_contrib_that_came_first(recording: Recording) -> None:
    """
    A provider that contrib was given before we were active gets the spans of engines made afterwards.
    """
    elsewhere = Recording()
    instrument_contrib(recording)
    otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    run(select_one(sqlalchemy_asyncio.create_async_engine(MEMORY)))
    assert ["connect", "SELECT"] == recording.names
    assert [] == elsewhere.started


def test_provider_for_all_although_contrib_refuses(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    `SQLAlchemyInstrumentor().instrument(tracer_provider=p)` leads engines made later to p on SQLAlchemy 2.1 too.
    """
    elsewhere = Recording()
    otel_async_sqla_agent.instrument(tracer_provider=elsewhere.provider)
    monkeypatch.setattr(SQLAlchemyInstrumentor, "_check_dependency_conflicts", lambda self: _Conflict())
    SQLAlchemyInstrumentor().instrument(tracer_provider=recording.provider)
    run(select_one(sqlalchemy_asyncio.create_async_engine(MEMORY)))
    assert OURS == scopes(recording)


def test_an_applications_own_connect(agent: Any, recording: Recording) -> None:
    """
    A `connect` that the application has put on its engine stays, and so does one of an engine class of its own.
    """
    agent()
    instrument_contrib(recording)
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    otel_async_sqla_agent.uninstrument()
    calls = []
    original = engine.sync_engine.connect
    own = engine.sync_engine.connect = lambda: calls.append(1) or original()  # type: ignore[method-assign]
    agent()
    run(select_one(engine))
    otel_async_sqla_agent.uninstrument()
    assert own is engine.sync_engine.connect
    assert [1] == calls


def test_wrong_arguments_reach_contrib(agent: Any, recording: Recording) -> None:
    """
    What contrib takes without a complaint, it takes with us in front of it too.
    """
    agent()
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    instrument_contrib(recording, engines=engine.sync_engine)
    run(select_one(engine))
    assert OURS == scopes(recording)


def test_nothing_holds_an_engine(agent: Any, recording: Recording) -> None:
    """
    With contrib stepped aside too, a dropped engine is collected.
    """
    agent()
    instrument_contrib(recording)
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    run(select_one(engine))
    reference = weakref.ref(engine.sync_engine)
    del engine
    gc.collect()
    assert reference() is None


def test_uninstrument_beside_idle_contrib(agent: Any, recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    Contrib that is imported but was never switched on has nothing that could be given back.
    """
    agent()
    engine = sqlalchemy_asyncio.create_async_engine(MEMORY)
    otel_async_sqla_agent.uninstrument()
    assert [] == caplog.records
    assert "connect" not in vars(engine.sync_engine)

from __future__ import annotations

import itertools
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

import otel_async_sqla_agent
from tests.conftest import run
from tests.recording import AGENT, Recording
from tests.test_engine import MEMORY, select_one

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
    engine = sqlalchemy.create_engine(MEMORY)
    run(select_one(AsyncEngine(engine)))
    assert scopes(recording) == OURS


def _attributes() -> list[Any]:
    return [
        dict(vars(EngineTracer)),
        dict(vars(SQLAlchemyInstrumentor)),
        vars(Engine)["connect"],
        sqlalchemy.create_engine,
        sqlalchemy_asyncio.create_async_engine,
    ]


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

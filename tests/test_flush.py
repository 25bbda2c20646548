from __future__ import annotations

import asyncio
import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import create_async_engine
from uvicorn import Config
from uvicorn.server import Server

import otel_async_sqla_agent
from otel_async_sqla_agent import _flush
from tests.conftest import python, run
from tests.recording import Recording
from tests.test_activation import STATE
from tests.test_engine import MEMORY

ORIGINAL = Server.shutdown


class Flushed(Recording):
    """
    A recording that counts its flushes.
    """

    flushes = 0

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        self.flushes += 1
        return True


@pytest.fixture
def recording() -> Flushed:
    return Flushed()


def stopped_by(*signals: int) -> Server:
    """
    Return a server without sockets that has caught these signals.
    """
    config = Config("tests:none", lifespan="off")
    config.load_app = lambda: None  # type: ignore[method-assign, assignment, return-value]
    config.load()
    server = Server(config)
    server.servers = []
    server.lifespan = config.lifespan_class(config)
    server._captured_signals = list(signals)
    return server


TERMINATED = (signal.SIGTERM,)


def test_armed_by_the_first_engine(agent: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    uvicorn's method is replaced at the first async engine where no driver is in use, and given back identical.
    """
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "aiomysql,aiosqlite,asyncmy,asyncpg,psycopg")
    agent()
    assert Server.shutdown is ORIGINAL
    create_async_engine(MEMORY)
    assert Server.shutdown is not ORIGINAL
    assert inspect.iscoroutinefunction(Server.shutdown)
    otel_async_sqla_agent.uninstrument()
    assert Server.shutdown is ORIGINAL


def test_switched_off(agent: Callable[..., None]) -> None:
    """
    With `flush_on_exit=False` nothing is replaced.
    """
    agent(flush_on_exit=False)
    create_async_engine(MEMORY)
    assert Server.shutdown is ORIGINAL


def test_nothing_is_imported_for_it() -> None:
    """
    An engine loads neither a server nor multiprocessing.
    """
    program = """
import otel_async_sqla_agent as a; a.instrument()
from sqlalchemy.ext.asyncio import create_async_engine
create_async_engine("sqlite+aiosqlite://")
"""
    assert not {"uvicorn", "gunicorn", "hypercorn", "multiprocessing"} & set(json.loads(python(program + STATE)))


@pytest.mark.parametrize(
    ("signals", "at_interrupt", "flushes"),
    [
        pytest.param([signal.SIGTERM], signal.default_int_handler, 1, id="terminated"),
        pytest.param([], signal.default_int_handler, 0, id="request-limit"),
        pytest.param([signal.SIGINT], signal.default_int_handler, 0, id="interrupted"),
        pytest.param([signal.SIGINT, signal.SIGTERM], signal.default_int_handler, 1, id="interrupted-and-terminated"),
        pytest.param([signal.SIGINT], signal.SIG_DFL, 1, id="interrupted-under-gunicorn"),
        pytest.param(None, signal.default_int_handler, 1, id="unknown"),
    ],
)
def test_flushed_where_a_signal_ends_the_process(
    signals: list[int] | None, at_interrupt: Any, flushes: int, agent: Callable[..., None], recording: Flushed
) -> None:
    """
    A server's end flushes if uvicorn is about to raise a deadly signal; else the SDK's `atexit` hook does.
    """
    previous = signal.signal(signal.SIGINT, at_interrupt)
    try:
        agent()
        create_async_engine(MEMORY)
    finally:
        signal.signal(signal.SIGINT, previous)
    server = stopped_by(*(signals or ()))
    if signals is None:
        del server._captured_signals
    run(server.shutdown())
    assert flushes == recording.flushes


def test_providers_in_use(measured: Callable[..., None], recording: Flushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The global providers are flushed, those given to `instrument()`, and those that contrib was given for an engine.
    """
    contrib = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy").SQLAlchemyInstrumentor()
    flushed = []

    class Provider(TracerProvider):
        def force_flush(self, timeout_millis: int = 30000) -> bool:
            flushed.append(self.name)
            return super().force_flush(timeout_millis)

        def __init__(self, name: str) -> None:
            super().__init__(shutdown_on_exit=False)
            self.name = name

    class Meters(MeterProvider):
        def force_flush(self, timeout_millis: float = 10000) -> bool:
            flushed.append("global meters")
            return super().force_flush(timeout_millis)

    class Reader(InMemoryMetricReader):
        def force_flush(self, timeout_millis: float = 10000) -> bool:
            flushed.append("given meters")
            return super().force_flush(timeout_millis)

    everywhere, meters, given, of_engine = (
        Provider("global"),
        Meters(shutdown_on_exit=False),
        Provider("given"),
        Provider("of engine"),
    )
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: everywhere)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: meters)
    otel_async_sqla_agent.instrument(
        tracer_provider=given, meter_provider=MeterProvider([Reader()], shutdown_on_exit=False)
    )
    engine = create_async_engine(MEMORY)
    contrib.instrument(engine=engine.sync_engine, tracer_provider=of_engine)
    try:
        run(stopped_by(*TERMINATED).shutdown())
    finally:
        if contrib.is_instrumented_by_opentelemetry:  # it refuses SQLAlchemy 2.1
            contrib.uninstrument()
    assert sorted(flushed) == ["given", "given meters", "global", "global meters", "of engine"]


def test_shut_down_provider_is_left_alone(agent: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """
    Metrics that the application has shut down itself are not exported again, and nothing is said.
    """
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    agent(meter_provider=provider)
    create_async_engine(MEMORY)
    provider.shutdown()
    reader.collect = None  # type: ignore[method-assign, assignment, misc]
    run(stopped_by(*TERMINATED).shutdown())
    assert caplog.messages == []


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Recording, threading.Event]]:
    """
    A recording whose flush does not come back, and what tells that it has begun.
    """
    begun, end = threading.Event(), threading.Event()

    class Hanging(Recording):
        def force_flush(self, timeout_millis: int = 30000) -> bool:
            assert not begun.is_set(), "a second flush although the time is up"
            begun.set()
            return end.wait(60)

    yield Hanging(), begun
    end.set()


def test_collector_down(hanging: tuple[Recording, threading.Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A flush that does not come back is left behind, and there is no second one in this process.
    """
    monkeypatch.setattr(_flush, "SECONDS", 0.05)
    recording, begun = hanging
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    create_async_engine(MEMORY)
    asyncio.run(stopped_by(*TERMINATED).shutdown())
    assert begun.is_set()
    asyncio.run(stopped_by(*TERMINATED).shutdown())
    [left] = [thread for thread in threading.enumerate() if thread.name == "otel-async-sqla-flush"]
    assert left.daemon


def test_cancelled(hanging: tuple[Recording, threading.Event]) -> None:
    """
    A shutdown that is cancelled while it flushes is cancelled.
    """
    recording, begun = hanging
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    create_async_engine(MEMORY)

    async def main() -> None:
        task = asyncio.create_task(stopped_by(*TERMINATED).shutdown())
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_event_loop_goes_on(agent: Callable[..., None], recording: Flushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An exporter may need the event loop while the server's end is flushed.
    """
    agent()
    create_async_engine(MEMORY)
    exported = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def export() -> None:
            exported.append("span")

        def force_flush(timeout_millis: int = 30000) -> bool:
            asyncio.run_coroutine_threadsafe(export(), loop).result(10)
            return True

        monkeypatch.setattr(recording, "force_flush", force_flush)
        await stopped_by(*TERMINATED).shutdown()
        assert exported == ["span"]

    run(main())


def test_failing_provider(
    agent: Callable[..., None],
    recording: Flushed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    A provider that raises is logged once, and the server ends as ever.
    """

    def fail(timeout_millis: int = 30000) -> bool:
        raise RuntimeError("no")

    monkeypatch.setattr(recording, "force_flush", fail)
    agent()
    create_async_engine(MEMORY)
    run(stopped_by(*TERMINATED).shutdown())
    run(stopped_by(*TERMINATED).shutdown())
    [message] = caplog.messages
    assert message.startswith("otel-async-sqla-agent: its flush layer failed")


def test_exception_of_the_server(agent: Callable[..., None], recording: Flushed) -> None:
    """
    What uvicorn raises is raised.
    """
    agent()
    create_async_engine(MEMORY)
    server = stopped_by(*TERMINATED)
    server.lifespan = None  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="shutdown"):
        run(server.shutdown())


def test_beside_another_wrapper(agent: Callable[..., None], recording: Flushed) -> None:
    """
    What another tool has put over ours stays, and ours behind it passes through.
    """
    agent()
    create_async_engine(MEMORY)
    ours: Any = Server.shutdown

    async def theirs(server: Server) -> None:
        await ours(server)

    Server.shutdown = theirs  # type: ignore[method-assign, assignment]
    try:
        otel_async_sqla_agent.uninstrument()
        assert Server.shutdown is theirs
        run(stopped_by(*TERMINATED).shutdown())
    finally:
        Server.shutdown = ORIGINAL  # type: ignore[method-assign]
    assert recording.flushes == 0


CHILD = """
import multiprocessing, multiprocessing.util, os, sys
import otel_async_sqla_agent
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from otel_async_sqla_agent import _boot
from sqlalchemy.ext.asyncio import create_async_engine

class Printing(SpanProcessor):
    def force_flush(self, timeout_millis=30000):
        print("flush", "in child" if os.getpid() != parent else "in parent", flush=True)
        return True

parent = os.getpid()
provider = TracerProvider()
provider.add_span_processor(Printing())
otel_async_sqla_agent.instrument(tracer_provider=provider)
create_async_engine("sqlite+aiosqlite://")
_boot._active._agent._flush._seconds_left = 0
fork = multiprocessing.get_context("fork").Process

def child(target):
    process = fork(target=target)
    process.start()
    process.join()
    print("exit code", process.exitcode, flush=True)

def finalizers():
    otel_async_sqla_agent.uninstrument()
    print(len(multiprocessing.util._finalizer_registry), "finalizers", flush=True)

child(print)
child(finalizers)
otel_async_sqla_agent.uninstrument()
child(print)
"""


def test_children() -> None:
    """
    A forked child flushes at its end, with time of its own, until `uninstrument()` in the child or in the parent.
    """
    assert python(CHILD).splitlines() == [
        *("", "flush in child", "exit code 0"),
        *("0 finalizers", "exit code 0"),
        *("", "exit code 0"),
    ]

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool.base import _ConnectionRecord

import otel_async_sqla_agent
from otel_async_sqla_agent import AsyncSQLAlchemyInstrumentor, _boot, environment_variables
from otel_async_sqla_agent._importhook import ImportHook
from tests.conftest import python, run
from tests.recording import Recording
from tests.test_engine import MEMORY, select_one

STATE = """
import json, sys
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import otel_async_sqla_agent", id="import"),
        pytest.param("import otel_async_sqla_agent as a; a.instrument()", id="instrument"),
        pytest.param("from otel_async_sqla_agent import _boot; _boot.activate()", id="pre-instrument"),
        pytest.param("import otel_async_sqla_agent.environment_variables", id="environment-variables"),
    ],
)
def test_activation_imports_next_to_nothing(program: str) -> None:
    """
    Importing and arming the agent loads no library, nor what is slow of the standard one.
    """
    loaded = set(json.loads(python(program + STATE)))
    heavy = {"sqlalchemy", "greenlet", "aiosqlite", "asyncpg", "wrapt", "opentelemetry", "importlib_metadata"}
    heavy |= {"asyncio", "logging", "typing", "dataclasses", "inspect"} - set(json.loads(python(STATE)))
    assert set() == loaded & heavy


def test_async_import_loads_no_opentelemetry() -> None:
    """
    Importing SQLAlchemy's asyncio extension loads neither OpenTelemetry nor wrapt: the first engine does.
    """
    program = "import otel_async_sqla_agent as a; a.instrument()\nimport sqlalchemy.ext.asyncio"
    assert not {"opentelemetry", "wrapt"} & set(json.loads(python(program + STATE)))


@pytest.mark.parametrize(
    ("environ", "active"),
    [
        pytest.param({}, True, id="default"),
        pytest.param({"OTEL_SDK_DISABLED": "TRUE"}, False, id="sdk-disabled"),
        pytest.param({"OTEL_SDK_DISABLED": "false"}, True, id="sdk-not-disabled"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis, async_sqla"}, False, id="by-name"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"}, False, id="all"),
        pytest.param({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "sqlalchemy"}, True, id="contrib-only"),
        pytest.param({"OTEL_ASYNC_SQLA_MODE": " Off "}, False, id="off"),
        pytest.param({"OTEL_ASYNC_SQLA_MODE": "bogus"}, True, id="bad-mode"),
    ],
)
def test_switches(environ: dict[str, str], active: bool, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    OpenTelemetry's own switches and mode `off` leave everything as it is.
    """
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    meta_path = list(sys.meta_path)
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    assert active == (meta_path != sys.meta_path)
    run(select_one(create_async_engine(MEMORY)))
    assert (["connect", "SELECT"] if active else []) == recording.names


LAUNCHER = "/site-packages/opentelemetry/instrumentation/auto_instrumentation"


@pytest.mark.parametrize(
    ("sitecustomize", "mode", "before", "after"),
    [
        pytest.param(LAUNCHER, "auto", "/app", f"{LAUNCHER}:/app", id="old-launcher"),
        pytest.param(LAUNCHER, "auto", None, LAUNCHER, id="old-launcher-alone"),
        pytest.param(LAUNCHER, "auto", f"/app:{LAUNCHER}", f"/app:{LAUNCHER}", id="there-already"),
        pytest.param(LAUNCHER, "off", "/app", "/app", id="off"),
        pytest.param("/somewhere", "auto", "/app", "/app", id="another-sitecustomize"),
        pytest.param(None, "auto", "/app", "/app", id="initialize"),
    ],
)
def test_children_of_the_launcher(
    sitecustomize: str | None, mode: str, before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where the launcher has taken its folder off PYTHONPATH, it comes back, so that child processes are launched too.
    """
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    if sitecustomize is not None:
        module = types.ModuleType("sitecustomize")
        module.__file__ = f"{sitecustomize}/sitecustomize.py"
        monkeypatch.setitem(sys.modules, "sitecustomize", module)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONPATH", before)
    otel_async_sqla_agent.instrument(mode=mode)
    _boot.include_children()
    assert after == os.environ["PYTHONPATH"]


def test_environment_is_read_at_activation(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What the application does to its environment after activation changes nothing.
    """
    monkeypatch.setenv("OTEL_ASYNC_SQLA_SPANS", "statement")
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    monkeypatch.setenv("OTEL_ASYNC_SQLA_SPANS", "none")
    run(select_one(create_async_engine(MEMORY)))
    assert recording.names == ["SELECT"]


def test_second_activation_is_silent(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    The launcher activates twice, by pre_instrument and as an instrumentor: the second time changes nothing.
    """
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    _boot.activate()
    AsyncSQLAlchemyInstrumentor().instrument(skip_dep_check=True)
    assert caplog.records == []
    run(select_one(create_async_engine(MEMORY)))
    assert recording.names == ["connect", "SELECT"]
    AsyncSQLAlchemyInstrumentor().uninstrument()


def test_lost_options_of_a_second_activation(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    Options that come too late are named in a warning, with what to do.
    """
    otel_async_sqla_agent.instrument()
    otel_async_sqla_agent.instrument(mode="engine", tracer_provider=recording.provider)
    assert caplog.messages == [
        "the agent is active already, so these options of a second activation are ignored: "
        "OTEL_ASYNC_SQLA_MODE, tracer_provider; call uninstrument() first"
    ]


def test_instrumentor_class(recording: Recording) -> None:
    """
    `AsyncSQLAlchemyInstrumentor` does what `instrument()` and `uninstrument()` do, with the same options.
    """
    instrumentor = AsyncSQLAlchemyInstrumentor()
    instrumentor.instrument(tracer_provider=recording.provider, spans="statement")
    run(select_one(create_async_engine(MEMORY)))
    instrumentor.uninstrument()
    run(select_one(create_async_engine(MEMORY)))
    assert recording.names == ["SELECT"]


def test_start_up_line(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    One line at INFO says what is on, at the first engine and not before.
    """
    caplog.set_level(logging.INFO, "otel_async_sqla_agent")
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    assert caplog.messages == []
    create_async_engine(MEMORY)
    create_async_engine(MEMORY)
    [message] = caplog.messages
    start = f"otel-async-sqla-agent {otel_async_sqla_agent.__version__} instruments async engines: mode auto, "
    assert message.startswith(start + "driver aiosqlite, stepped aside: ")


def test_one_start_up_line(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    It is one line also where engines come and go, and where several threads make the first ones.
    """
    caplog.set_level(logging.INFO, "otel_async_sqla_agent")
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        create_async_engine(MEMORY)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    create_async_engine(MEMORY)
    assert 1 == len(caplog.messages)
    connect = vars(_ConnectionRecord)["_ConnectionRecord__connect"]
    otel_async_sqla_agent.uninstrument()
    assert connect.__wrapped__ is vars(_ConnectionRecord)["_ConnectionRecord__connect"]


def test_without_metadata(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Vendored or frozen, without the distribution's metadata, the agent works and calls its version unknown.
    """
    import importlib_metadata

    def missing(name: str) -> str:
        raise importlib_metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib_metadata, "version", missing)
    monkeypatch.delitem(vars(otel_async_sqla_agent), "__version__", raising=False)
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    run(select_one(create_async_engine(MEMORY)))
    assert {"unknown"} == {span.instrumentation_scope.version for span in recording.ended}
    monkeypatch.delitem(vars(otel_async_sqla_agent), "__version__")


def test_function_and_class_are_one(recording: Recording) -> None:
    """
    What the class has switched on, the function switches off, and the class on again.
    """
    AsyncSQLAlchemyInstrumentor().instrument(tracer_provider=Recording().provider)
    otel_async_sqla_agent.uninstrument()
    AsyncSQLAlchemyInstrumentor().instrument(tracer_provider=recording.provider)
    run(select_one(create_async_engine(MEMORY)))
    assert ["connect", "SELECT"] == recording.names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(otel_async_sqla_agent.Mode.BOTH, "both", id="member"),
        pytest.param(["statement", "connect"], "statement,connect", id="list"),
        pytest.param([], "none", id="nothing"),
        pytest.param(2.5, "2.5", id="number"),
        pytest.param(True, "True", id="boolean"),
    ],
)
def test_options_as_variables(value: Any, text: str) -> None:
    """
    An option of `instrument()` reads as its variable would be written.
    """
    assert text == otel_async_sqla_agent._as_text(value)


@pytest.mark.parametrize("mode", ["driver", "both"])
def test_mode_of_an_uncovered_driver(
    mode: str, recording: Recording, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An engine whose driver is switched off says so once, and gives the engine layer's spans.
    """
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "aiosqlite")
    otel_async_sqla_agent.instrument(mode=mode, tracer_provider=recording.provider)
    run(select_one(create_async_engine(MEMORY)))
    run(select_one(create_async_engine(MEMORY)))
    assert [
        f"OTEL_ASYNC_SQLA_MODE={mode}: no spans are made of the calls of aiosqlite, so the engine layer makes those of "
        "its engines"
    ] == caplog.messages
    assert recording.names == ["connect", "SELECT"] * 2


LATE_PROVIDERS = """
import asyncio, logging
logging.basicConfig(format="%(levelname)s %(message)s", stream=__import__("sys").stdout)
import otel_async_sqla_agent
otel_async_sqla_agent.instrument(spans="statement")
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
engine = create_async_engine("sqlite+aiosqlite://")

async def statement():
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

async def main():
    await statement()
    await statement()
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class Printing(SpanProcessor):
        def on_end(self, span):
            print("span", span.name, flush=True)
            raise RuntimeError("a failure, for the metric")

    provider, reader = TracerProvider(), InMemoryMetricReader()
    provider.add_span_processor(Printing())
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    await statement()
    logging.disable()
    await engine.dispose()
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        if metric.name in ("async_sqla.internal_errors", "db.client.operation.duration"):
            print("metric", metric.name, sum(getattr(point, "count", 1) for point in metric.data.data_points))

logging.getLogger("otel_async_sqla_agent").addFilter(lambda record: record.levelno == logging.WARNING)
asyncio.run(main())
"""


def test_providers_set_later_are_used() -> None:
    """
    Without a provider there is one warning; providers set after the engine was made and used are used.
    """
    assert sorted(python(LATE_PROVIDERS).splitlines()) == [
        "WARNING no TracerProvider is set, so the spans of async engines go nowhere for now; run the program with "
        "`opentelemetry-instrument`, or call opentelemetry.trace.set_tracer_provider()",
        "metric async_sqla.internal_errors 1",
        "metric db.client.operation.duration 1",
        "span SELECT",
    ]


def test_no_warning_with_a_provider(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """
    Where spans have somewhere to go, nothing is said.
    """
    otel_async_sqla_agent.instrument(tracer_provider=recording.provider)
    run(select_one(create_async_engine(MEMORY)))
    assert caplog.messages == []


def test_global_state_is_untouched() -> None:
    """
    These tests set no global provider, on which the test before relies.
    """
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert "Proxy" in type(metrics.get_meter_provider()).__name__


def test_failing_callback_breaks_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    When instrumenting fails at the import of SQLAlchemy's asyncio extension, the import succeeds and is logged.
    """
    program = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s", stream=__import__("sys").stdout)
from otel_async_sqla_agent import _agent, instrument
_agent.Agent.sqlalchemy_imported = None
instrument()
import sqlalchemy.ext.asyncio
"""
    first, *_, last = python(program).splitlines()
    assert first == "ERROR otel-async-sqla-agent could not instrument sqlalchemy.ext.asyncio.engine"
    assert last == "TypeError: 'NoneType' object is not callable"


def test_version_is_the_distributions() -> None:
    """
    `__version__` comes from the metadata, and an unknown name is an AttributeError.
    """
    assert importlib.metadata.version("otel-async-sqla-agent") == otel_async_sqla_agent.__version__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = otel_async_sqla_agent.nonsense


def test_variables_are_their_own_names() -> None:
    """
    The launcher makes arguments of the names and sets the variables of the same name.
    """
    names = {name: value for name, value in vars(environment_variables).items() if not name.startswith("_")}
    assert names
    assert list(names) == list(names.values())
    assert all(name.startswith("OTEL_ASYNC_SQLA_") for name in names)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """
    A module `hooked` that notes its loader while it is executed.
    """
    (tmp_path / "hooked.py").write_text("loader = type(__loader__).__name__, type(__spec__.loader).__name__\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "hooked"
    sys.modules.pop("hooked", None)


@pytest.fixture
def heard() -> Any:
    heard: list[Any] = []
    hook = ImportHook({"hooked": heard.append})
    yield heard, hook
    hook.uninstall()


def test_hook_calls_once_after_execution(module: str, heard: Any) -> None:
    """
    The callback gets the executed module, whose loader is the real one even while it is executed.
    """
    calls, hook = heard
    hook.install()
    hooked = importlib.import_module(module)
    assert [hooked] == calls
    assert hooked.loader == ("SourceFileLoader", "SourceFileLoader")
    assert (
        type(hooked.__loader__).__name__,
        type(hooked.__spec__.loader).__name__,
    ) == ("SourceFileLoader", "SourceFileLoader")


def test_hook_hears_of_a_reload(module: str, heard: Any) -> None:
    """
    A reload makes new objects, so the callback comes again.
    """
    calls, hook = heard
    hook.install()
    hooked = importlib.import_module(module)
    importlib.reload(hooked)
    assert [hooked, hooked] == calls


def test_hook_for_an_imported_module(module: str, heard: Any) -> None:
    """
    For a module that is imported already the callback comes at once.
    """
    calls, hook = heard
    hooked = importlib.import_module(module)
    hook.install()
    assert [hooked] == calls


def test_hook_waits_for_another_threads_import(tmp_path: Path, heard: Any, monkeypatch: Any) -> None:
    """
    A module that another thread is still executing is handed over complete.
    """
    calls, hook = heard
    (tmp_path / "hooked.py").write_text(
        "import tests.test_activation as t\nt.importing.set()\nt.go_on.wait(10)\ncomplete = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tests.test_activation", sys.modules[__name__])
    thread = threading.Thread(target=importlib.import_module, args=("hooked",))
    thread.start()
    importing.wait(10)
    threading.Timer(0.05, go_on.set).start()
    try:
        hook.install()
    finally:
        go_on.set()
        thread.join()
        sys.modules.pop("hooked", None)
    assert [hooked.complete for hooked in calls] == [True]


importing, go_on = threading.Event(), threading.Event()


def test_hook_beside_wrapts(module: str, heard: Any) -> None:
    """
    With wrapt's import hook for the same module both hear of it, each once, in either order.
    """
    import wrapt

    calls, hook = heard
    wrapt_calls: list[Any] = []
    wrapt.register_post_import_hook(wrapt_calls.append, "hooked")
    hook.install()
    hooked = importlib.import_module(module)
    assert ([hooked], [hooked]) == (calls, wrapt_calls)


def test_hook_leaves_other_imports_alone(heard: Any) -> None:
    """
    The finder knows nothing of modules that are not in its table, nor of one that does not exist.
    """
    _, hook = heard
    hook.install()
    assert hook.find_spec("json") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hooked")

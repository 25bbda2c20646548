"""
The opt-in that configures the SDK where nobody else has. Real programs are in integration/test_images.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from sqlalchemy.ext.asyncio import create_async_engine

import otel_async_sqla_agent
from otel_async_sqla_agent import _boot, _sdk
from tests.conftest import run
from tests.recording import Recording
from tests.test_engine import MEMORY, select_one


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """
    Return what grows each time that the SDK would be configured.
    """
    configured: list[str] = []
    monkeypatch.setattr(_sdk, "_configure", lambda: configured.append("SDK"))
    return configured


def test_first_connection_configures(configured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Making engines does not configure the SDK; their first connection does, before its span starts, and only that.
    """
    recording = Recording()
    otel_async_sqla_agent.instrument(sdk="auto")
    first, second = create_async_engine(MEMORY), create_async_engine(MEMORY)
    assert configured == []
    monkeypatch.setattr(
        _sdk,
        "_configure",
        lambda: (configured.append("SDK"), monkeypatch.setattr(trace, "_TRACER_PROVIDER", recording.provider)),
    )
    run(select_one(first))
    run(select_one(second))
    assert configured == ["SDK"]
    assert recording.names == ["connect", "SELECT"] * 2


@pytest.mark.parametrize("spans", ["none", "statement", "transaction"])
def test_whatever_makes_spans(spans: str, configured: list[str]) -> None:
    """
    It is configured for metrics as well, and where a connect makes no span.
    """
    otel_async_sqla_agent.instrument(sdk="auto", spans=spans)
    run(select_one(create_async_engine(MEMORY)))
    assert configured == ["SDK"]


@pytest.mark.parametrize("mode", ["auto", "engine", "driver", "both"])
def test_every_mode(mode: str, configured: list[str]) -> None:
    """
    An engine's first connection counts in every mode.
    """
    otel_async_sqla_agent.instrument(sdk="auto", mode=mode)
    run(select_one(create_async_engine(MEMORY)))
    assert configured == ["SDK"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"sdk": "off"}, id="off"),
        pytest.param({"sdk": "auto", "tracer_provider": Recording().provider}, id="provider-given"),
    ],
)
def test_not_wanted(options: dict[str, Any], configured: list[str]) -> None:
    """
    Nothing is configured unless it is asked for, nor where the agent is given a provider.
    """
    otel_async_sqla_agent.instrument(**options)
    run(select_one(create_async_engine(MEMORY)))
    assert configured == []


@pytest.mark.parametrize(
    ("api", "name", "provider"),
    [
        pytest.param(trace, "get_tracer_provider", Recording().provider, id="tracer"),
        pytest.param(metrics, "get_meter_provider", MeterProvider(shutdown_on_exit=False), id="meter"),
    ],
)
def test_applications_provider(
    api: Any, name: str, provider: Any, configured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An application that has set a provider before its first connection configures OpenTelemetry itself.
    """
    otel_async_sqla_agent.instrument(sdk="auto")
    engine = create_async_engine(MEMORY)
    monkeypatch.setattr(api, name, lambda: provider)
    run(select_one(engine))
    assert configured == []


def test_failing_configuration(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """
    When it fails, the query works, the failure is logged, and it is not tried again.
    """

    def fail() -> None:
        raise RuntimeError("no exporter of that name")

    monkeypatch.setattr(_sdk, "_configure", fail)
    otel_async_sqla_agent.instrument(sdk="auto")
    run(select_one(create_async_engine(MEMORY)))
    run(select_one(create_async_engine(MEMORY)))
    assert ["ERROR", "WARNING"] == [record.levelname for record in caplog.records]
    assert "no exporter of that name" in str(caplog.records[0].exc_info)


def test_other_threads_wait() -> None:
    """
    A connection that another thread opens meanwhile waits, so that its span is made as well.
    """
    order: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def configure() -> None:
        begun.set()
        go_on.wait(10)
        order.append("configured")

    opt_in = _sdk.SdkOptIn(wanted=True)

    def second() -> None:
        opt_in()
        order.append("second connection")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_sdk, "_configure", configure)
        threads = [threading.Thread(target=opt_in), threading.Thread(target=second)]
        threads[0].start()
        begun.wait(10)
        threads[1].start()
        threads[1].join(0.05)
        go_on.set()
        for thread in threads:
            thread.join()
    assert order == ["configured", "second connection"]


@pytest.mark.parametrize(
    ("variable", "expected"), [(None, ["SDK"]), ("", ["SDK"]), ("auto", ["SDK"]), ("off", [])], ids=repr
)
def test_started_by_preinstall(
    variable: str | None,
    expected: list[str],
    configured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Activated by the files of `preinstall`, `auto` is the default; and several of them start the agent once.
    """
    if variable is not None:
        monkeypatch.setenv("OTEL_ASYNC_SQLA_SDK", variable)
    _boot.start()
    _boot.start()
    assert caplog.messages == []
    run(select_one(create_async_engine(MEMORY)))
    assert expected == configured


def test_as_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Distro and configurator are those that the launcher would choose, and no instrumentor is loaded.
    """
    from opentelemetry.instrumentation.auto_instrumentation import _load

    calls: list[str] = []

    class Distro:
        def configure(self) -> None:
            calls.append("distro")

    def step(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    monkeypatch.setattr(_load, "_load_distro", Distro)
    monkeypatch.setattr(_load, "_load_configurators", step("configurator"))
    monkeypatch.setattr(_load, "_load_instrumentors", step("instrumentors"))
    _sdk._configure()
    assert calls == ["distro", "configurator"]

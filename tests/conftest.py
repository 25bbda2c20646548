from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import otel_async_sqla_agent
from tests.recording import Recording

_EXIT_STATUS = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Begin without a variable that configures OpenTelemetry, and end with nothing instrumented or current.
    """
    for variable in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(variable)
    yield
    otel_async_sqla_agent.uninstrument()
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def agent(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """
    Return what activates the agent, with spans going to the recording and stable names by default.
    """

    def activate(opt_in: str = "database", **options: Any) -> None:
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)
        otel_async_sqla_agent.instrument(tracer_provider=recording.provider, **options)

    return activate


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def measured(reader: InMemoryMetricReader, recording: Recording) -> Callable[..., None]:
    """
    Return what activates the agent with both providers.
    """

    def activate(provider: Any = None, **options: Any) -> None:
        otel_async_sqla_agent.instrument(
            tracer_provider=provider or recording.provider,
            meter_provider=MeterProvider([reader], exemplar_filter=AlwaysOnExemplarFilter(), shutdown_on_exit=False),
            **options,
        )

    return activate


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/test.db"


def python(program: str, **environ: str) -> str:
    """
    Run a program in an interpreter of its own and return what it prints.
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        env={"PATH": "", **environ},
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def run(main: Any) -> Any:
    """
    Run a coroutine in an event loop of its own, and collect what it leaves.
    """
    try:
        return asyncio.run(_until_workers_end(main))
    finally:
        gc.collect()


async def _until_workers_end(main: Any) -> Any:
    """
    Keep the loop open for aiosqlite's threads: they report to it also what was cancelled or has failed.
    """
    before = set(threading.enumerate())
    try:
        return await main
    finally:
        deadline = time.monotonic() + 2
        while set(threading.enumerate()) - before and time.monotonic() < deadline:
            await asyncio.sleep(0.001)


def pytest_collection_finish(session: pytest.Session) -> None:
    """
    Keep what has been imported by now out of the collections that the tests ask for: they took half of the time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = exitstatus


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """
    End also where a failed test has left one of aiosqlite's threads, which are no daemons, waiting for ever.
    """
    if any(thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(config.stash.get(_EXIT_STATUS, 1))

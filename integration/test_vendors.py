"""
Exactly one span a statement beside other vendors; `nox -s vendors` runs each in an environment of its own.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import Receiver
from integration.processes import run
from tests.recording import AGENT

STATEMENTS = """
import asyncio, json
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

class Counting(SpanProcessor):
    started = ended = 0

    def on_start(self, span, parent_context=None):
        self.started += 1

    def on_end(self, span):
        self.ended += 1

async def main():
    engine = create_async_engine("sqlite+aiosqlite://")
    for number in range(2):
        with trace.get_tracer("app").start_as_current_span(f"request {number}"):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT :n"), {"n": number})
                try:
                    await connection.execute(text("SELECT * FROM nowhere"))
                except Exception as error:
                    assert type(error).__name__ == "OperationalError"
    await engine.dispose()
"""
UNDER_A_DISTRO = f"""
{STATEMENTS}
counting = Counting()
trace.get_tracer_provider().add_span_processor(counting)
asyncio.run(main())
print(json.dumps([counting.started, counting.ended]))
"""
EXPECTED = [
    ("app", "request 0", None),
    (AGENT, "connect", "request 0"),
    (AGENT, "SELECT", "request 0"),
    (AGENT, "SELECT nowhere", "request 0"),
    ("app", "request 1", None),
    (AGENT, "SELECT", "request 1"),
    (AGENT, "SELECT nowhere", "request 1"),
]


SESSION = "has a nox session of its own: vendors"


def needs(module: str) -> Any:
    return pytest.mark.skipif(find_spec(module) is None, reason=SESSION)


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="elastic", marks=needs("elasticotel")),
        pytest.param({}, id="splunk", marks=needs("splunk_otel")),
        pytest.param(
            {"OTEL_PYTHON_DISTRO": "aws_distro", "OTEL_PYTHON_CONFIGURATOR": "aws_configurator"},
            id="aws",
            marks=needs("amazon"),
        ),
    ],
)
def test_distro(variables: dict[str, str], tmp_path: Path, receiver: Receiver) -> None:
    """
    Under a vendor's distro each statement has one span, ended, below the request that it belongs to.
    """
    (tmp_path / "app.py").write_text(UNDER_A_DISTRO)
    result = run(
        "opentelemetry-instrument",
        sys.executable,
        "app.py",
        cwd=tmp_path,
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        OTEL_SERVICE_NAME="shop",
        **variables,
        **receiver.environ,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [len(EXPECTED)] * 2
    names = {span.span_id: span.name for span in receiver.spans()}
    assert [(span.scope, span.name, names.get(span.parent_id)) for span in receiver.spans()] == EXPECTED


BESIDE = f"""
import sys
import ddtrace, logfire, sentry_sdk
ddtrace.patch(sqlalchemy=True)
from ddtrace.trace import TraceFilter, tracer
from sentry_sdk.transport import Transport
{STATEMENTS}
datadog, sentry = [], []

class Keep(TraceFilter):
    def process_trace(self, trace):
        datadog.extend(span.resource for span in trace)

class Capture(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type == "transaction":
                sentry.extend(span["description"] for span in item.payload.json["spans"])

class Ours(Counting):
    ours = []

    def on_start(self, span, parent_context=None):
        if span.instrumentation_scope.name == {AGENT!r}:
            super().on_start(span)

    def on_end(self, span):
        if span.instrumentation_scope.name == {AGENT!r}:
            super().on_end(span)
            self.ours.append([span.name, span.parent.span_id == trace.get_current_span().get_span_context().span_id])

counting = Ours()
tracer.configure(trace_processors=[Keep()])
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", traces_sample_rate=1.0, transport=Capture)
logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[counting])
if sys.argv[1] == "on":
    import otel_async_sqla_agent
    otel_async_sqla_agent.instrument()
with sentry_sdk.start_transaction(name="both requests"):
    asyncio.run(main())
tracer.flush()
print(json.dumps([datadog, sentry, counting.started, counting.ended, counting.ours]))
"""


@pytest.mark.skipif(find_spec("logfire") is None, reason=SESSION)
def test_beside_other_tools(tmp_path: Path) -> None:
    """
    ddtrace and Sentry see in one process what they see without the agent, and each statement has one span in Logfire.
    """
    (tmp_path / "app.py").write_text(BESIDE)
    seen = {}
    for agent in ("on", "off"):
        result = run(sys.executable, "app.py", agent, cwd=tmp_path, DD_INSTRUMENTATION_TELEMETRY_ENABLED="false")
        assert result.returncode == 0, result.stderr
        seen[agent] = json.loads(result.stdout.splitlines()[-1])
    statements = ["SELECT ?", "SELECT * FROM nowhere"] * 2
    assert [statements, statements, 0, 0, []] == seen["off"]
    ours = [name for scope, name, _ in EXPECTED if scope == AGENT]
    assert [statements, statements, len(ours), len(ours), [[name, True] for name in ours]] == seen["on"]

"""
The checker of the conventions finds what it is there for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind, Status, StatusCode

from tests.conventions import dup_span_problems, metric_problems, old_span_problems, span_problems
from tests.recording import Recording

GOOD: dict[str, Any] = {
    "db.system.name": "postgresql",
    "db.namespace": "shop",
    "db.query.text": "SELECT ? FROM t",
    "db.query.summary": "SELECT t",
    "server.address": "db.example",
    "server.port": 5433,
}
GOOD_OLD: dict[str, Any] = {
    "db.system": "postgresql",
    "db.name": "shop",
    "db.statement": "SELECT ? FROM t",
    "net.peer.name": "db.example",
    "net.peer.port": 5433,
    "net.transport": "ip_tcp",
}
ERROR = {"status": Status(StatusCode.ERROR)}


def span(attributes: dict[str, Any], **options: Any) -> Any:
    recording = Recording()
    made = recording.tracer.start_span(
        options.get("name", "SELECT t"),
        kind=options.get("kind", SpanKind.CLIENT),
        attributes={key: value for key, value in attributes.items() if value is not None},
    )
    made.set_status(options.get("status", Status(StatusCode.UNSET)))
    if "event" in options:
        made.add_event(*options["event"])
    made.end()
    return recording.ended[0]


def test_good_span() -> None:
    """
    Nothing is wrong with spans as the conventions want them.
    """
    failed = GOOD | {"error.type": "23505", "db.response.status_code": "23505"}
    event = ("exception", {"exception.type": "E", "exception.message": "?"})
    assert [] == span_problems(span(GOOD))
    assert [] == span_problems(span(failed, event=event, **ERROR))
    assert [] == old_span_problems(span(GOOD_OLD))
    assert [] == dup_span_problems(span(GOOD | GOOD_OLD))
    assert [] == dup_span_problems(span(GOOD | GOOD_OLD | {"server.port": None, "net.peer.port": 5432}))
    captured = {"db.query.parameter.0": "x", "db.response.returned_rows": 1, "async_sqla.x": 1}
    assert [] == span_problems(span(GOOD | captured), opt_in=True)


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        pytest.param({"db.statement": "x"}, {}, "db.statement is not in the conventions", id="old-name"),
        pytest.param({"db.query.parameter.0": "x"}, {}, "db.query.parameter.0 is not in the conventions", id="opt-in"),
        pytest.param({"server.port": "5433"}, {}, "server.port is no int", id="type"),
        pytest.param({"db.query.text": ""}, {}, "db.query.text is empty", id="empty"),
        pytest.param({"db.system.name": None}, {}, "db.system.name is None", id="no-system"),
        pytest.param({"db.system.name": "mssql"}, {}, "db.system.name is 'mssql'", id="old-system"),
        pytest.param({"server.port": 5432}, {}, "server.port is the default, or has no address", id="default-port"),
        pytest.param({"server.address": None}, {}, "server.port is the default, or has no address", id="port-alone"),
        pytest.param({"db.operation.batch.size": 1}, {}, "a batch of one", id="batch-of-one"),
        pytest.param({"db.query.summary": "s" * 256}, {"name": "s" * 256}, "db.query.summary is too long", id="long"),
        pytest.param({}, {"name": "SELECT"}, "the name 'SELECT' is not the summary 'SELECT t'", id="name"),
        pytest.param({}, {"kind": SpanKind.INTERNAL}, "the kind is INTERNAL", id="kind"),
        pytest.param({}, {"status": Status(StatusCode.OK)}, "the status is OK", id="ok"),
        pytest.param({}, ERROR, "error.type is there if and only if the status is ERROR", id="no-error-type"),
        pytest.param({"error.type": "E"}, {}, "error.type is there if and only if the status is ERROR",
                     id="error-type-alone"),
        pytest.param({"error.type": "E", "db.response.status_code": "1"}, ERROR, "error.type is not the status code",
                     id="status-code"),
        pytest.param({"error.type": "E"}, {"status": Status(StatusCode.ERROR, "E: x")},
                     "the description repeats error.type", id="description"),
        pytest.param({}, {"event": ("exception", {"exception.stacktrace": "x"})},
                     "the event 'exception' has ['exception.stacktrace']", id="event"),
    ],
)  # fmt: skip
def test_bad_span(change: dict[str, Any], options: dict[str, Any], problem: str) -> None:
    """
    Each deviation of a span is found.
    """
    assert [problem] == span_problems(span(GOOD | change, **options))


def test_bad_names() -> None:
    """
    Old values, and names of which the two say different things, are found.
    """
    assert ["db.system is 'microsoft.sql_server'", "net.transport is 'tcp'"] == old_span_problems(
        span(GOOD_OLD | {"db.system": "microsoft.sql_server", "net.transport": "tcp"})
    )
    assert ["net.transport and net.peer.name go together"] == old_span_problems(
        span(GOOD_OLD | {"net.transport": None})
    )
    assert ["db.namespace and db.name differ", "server.port and net.peer.port differ"] == dup_span_problems(
        span(GOOD | GOOD_OLD | {"db.name": "x", "net.peer.port": 1})
    )


BUCKETS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
DURATION = "db.client.operation.duration"
POOL = {"db.client.connection.pool.name": "p"}


def _record(
    name: str, attributes: dict[str, Any], unit: str = "s", buckets: Any = None, kind: str = "histogram"
) -> Callable[[Any], None]:
    def record(meter: Any) -> None:
        if kind == "histogram":
            meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=buckets).record(1, attributes)
        else:
            getattr(meter, f"create_{kind}")(name, unit).add(1, attributes)

    return record


@pytest.mark.parametrize(
    ("record", "problems"),
    [
        pytest.param(_record(DURATION, {"db.system.name": "mysql"}, buckets=BUCKETS), [], id="duration"),
        pytest.param(_record("db.client.connection.count", POOL | {"db.client.connection.state": "idle"},
                             "{connection}", kind="up_down_counter"), [], id="count"),
        pytest.param(lambda meter: None, ["no metric"], id="nothing"),
        pytest.param(_record(DURATION, {"db.query.text": "x"}, buckets=BUCKETS),
                     [f"{DURATION}: db.query.text does not belong there", f"{DURATION}: db.system.name is missing"],
                     id="attributes"),
        pytest.param(_record(DURATION, {"db.system.name": "mssql"}, buckets=BUCKETS),
                     [f"{DURATION}: db.system.name is 'mssql'"], id="system"),
        pytest.param(_record(DURATION, {"db.system.name": "mysql", "server.port": 3306}, buckets=BUCKETS),
                     [f"{DURATION}: server.port is the default"], id="port"),
        pytest.param(_record(DURATION, {"db.system.name": "mysql", "db.response.status_code": "1"}, buckets=BUCKETS),
                     [f"{DURATION}: error.type is not the status code"], id="error"),
        pytest.param(_record(DURATION, {"db.system.name": "mysql"}, unit="ms"),
                     [f"{DURATION}: the unit is 'ms'", f"{DURATION}: other buckets"], id="unit"),
        pytest.param(_record(DURATION, {"db.system.name": "mysql"}, kind="counter"),
                     [f"{DURATION}: the wrong instrument"], id="instrument"),
        pytest.param(_record("db.client.connection.timeouts", POOL, "{timeout}", kind="up_down_counter"),
                     ["db.client.connection.timeouts: the wrong instrument"], id="monotonic"),
        pytest.param(_record("db.client.connection.count", POOL | {"db.client.connection.state": "busy"},
                             "{connection}", kind="up_down_counter"),
                     ["db.client.connection.count: db.client.connection.state is 'busy'"], id="state"),
        pytest.param(_record("db.client.connections.usage", {}),
                     ["db.client.connections.usage: not in the conventions"], id="unknown"),
    ],
)  # fmt: skip
def test_metrics(record: Callable[[Any], None], problems: list[str]) -> None:
    """
    Each deviation of a metric is found.
    """
    reader = InMemoryMetricReader()
    record(MeterProvider([reader], shutdown_on_exit=False).get_meter("tests"))
    assert problems == metric_problems(reader.get_metrics_data())

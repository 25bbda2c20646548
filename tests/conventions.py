"""
Check spans and metrics against OpenTelemetry's conventions for databases, and say what is wrong.

Source: open-telemetry/semantic-conventions v1.44.0, docs/db/ and model/db/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.metrics.export import Histogram, MetricsData, Sum
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

SYSTEMS = {"postgresql", "mysql", "mariadb", "microsoft.sql_server", "oracle.db", "sqlite", "cockroachdb", "other_sql"}
OLD_SYSTEMS = {"postgresql", "mysql", "mariadb", "mssql", "oracle", "sqlite", "cockroachdb", "other_sql"}
DEFAULT_PORTS = {
    "postgresql": 5432,
    "mysql": 3306,
    "mariadb": 3306,
    "microsoft.sql_server": 1433,
    "oracle.db": 1521,
    "cockroachdb": 26257,
}
SUMMARY_LIMIT = 255

STABLE_ALONE = {
    "db.system.name": str,
    "db.namespace": str,
    "db.query.text": str,
    "db.query.summary": str,
    "db.stored_procedure.name": str,
    "server.address": str,
    "server.port": int,
}
OLD_ALONE = {
    "db.system": str,
    "db.name": str,
    "db.statement": str,
    "db.operation": str,
    "db.user": str,
    "net.peer.name": str,
    "net.peer.port": int,
    "net.transport": str,
}
IN_EVERY_MODE = {"error.type": str, "db.response.status_code": str, "db.operation.batch.size": int}
OPT_IN = {"db.response.returned_rows": int}
STABLE, OLD = STABLE_ALONE | IN_EVERY_MODE, OLD_ALONE | IN_EVERY_MODE
OWN_PREFIX = "async_sqla."

# The old name of what has two.
RENAMED = {
    "db.system.name": "db.system",
    "db.namespace": "db.name",
    "db.query.text": "db.statement",
    "server.address": "net.peer.name",
    "server.port": "net.peer.port",
}
RENAMED_SYSTEMS = {"microsoft.sql_server": "mssql", "oracle.db": "oracle"}

_DURATION = {"error.type", "db.response.status_code", "db.query.summary", "db.namespace", "db.system.name",
             "db.stored_procedure.name", "server.address", "server.port"}  # fmt: skip
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_POOL = {"db.client.connection.pool.name"}
_STATE = "db.client.connection.state"
# Unit, buckets or whether it only grows, attributes that may be there, and that must.
METRICS: dict[str, tuple[str, Any, set[str], set[str]]] = {
    "db.client.operation.duration": ("s", _SECONDS, _DURATION, {"db.system.name"}),
    "db.client.response.returned_rows": ("{row}", _ROWS, _DURATION, {"db.system.name"}),
    "db.client.connection.count": ("{connection}", False, _POOL | {_STATE}, _POOL | {_STATE}),
    "db.client.connection.idle.max": ("{connection}", False, _POOL, _POOL),
    "db.client.connection.idle.min": ("{connection}", False, _POOL, _POOL),
    "db.client.connection.max": ("{connection}", False, _POOL, _POOL),
    "db.client.connection.pending_requests": ("{request}", False, _POOL, _POOL),
    "db.client.connection.timeouts": ("{timeout}", True, _POOL, _POOL),
    # Development, where the conventions name no buckets.
    "db.client.connection.create_time": ("s", None, _POOL, _POOL),
    "db.client.connection.wait_time": ("s", None, _POOL, _POOL),
    "db.client.connection.use_time": ("s", None, _POOL, _POOL),
}


def span_problems(span: ReadableSpan, *, opt_in: bool = False) -> list[str]:
    """
    Check a database client's span that has the stable names alone.

    Args:
        span: A span that has ended.
        opt_in: Whether the user asked for parameters and rows.
    """
    attributes = dict(span.attributes or {})
    return [
        *_named_problems(attributes, STABLE, opt_in),
        *_stable_problems(span, attributes),
        *_outcome_problems(span, attributes),
    ]


def old_span_problems(span: ReadableSpan) -> list[str]:
    """
    Check a span that has the old names alone.
    """
    attributes = dict(span.attributes or {})
    return [
        *_named_problems(attributes, OLD, False),
        *_old_problems(attributes),
        *_outcome_problems(span, attributes),
    ]


def dup_span_problems(span: ReadableSpan) -> list[str]:
    """
    Check a span that has both names, and that both say the same.
    """
    attributes = dict(span.attributes or {})
    return [
        *_named_problems(attributes, STABLE | OLD, False),
        *_stable_problems(span, attributes),
        *_old_problems(attributes),
        *_outcome_problems(span, attributes),
        *_pair_problems(attributes),
    ]


def metric_problems(data: MetricsData | None) -> list[str]:
    """
    Check what a reader has collected; metrics of the agent's own names are left aside.
    """
    metrics = [
        metric
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if not metric.name.startswith(OWN_PREFIX)
    ]
    if not metrics:
        return ["no metric"]
    return [f"{metric.name}: {problem}" for metric in metrics for problem in _metric_problems(metric)]


def _named_problems(attributes: dict[str, Any], types: dict[str, type], opt_in: bool) -> Iterator[str]:
    known = types | (OPT_IN if opt_in else {})
    for key, value in attributes.items():
        if key.startswith(OWN_PREFIX) or (opt_in and key.startswith("db.query.parameter.")):
            continue
        if key not in known:
            yield f"{key} is not in the conventions"
        elif type(value) is not known[key]:
            yield f"{key} is no {known[key].__name__}"
        elif value == "":
            yield f"{key} is empty"


def _stable_problems(span: ReadableSpan, attributes: dict[str, Any]) -> Iterator[str]:
    system, port = attributes.get("db.system.name"), attributes.get("server.port")
    summary = attributes.get("db.query.summary")
    if system not in SYSTEMS:
        yield f"db.system.name is {system!r}"
    if port is not None and (port == DEFAULT_PORTS.get(system) or "server.address" not in attributes):
        yield "server.port is the default, or has no address"
    if summary is not None and len(summary) > SUMMARY_LIMIT:
        yield "db.query.summary is too long"
    if attributes.get("db.operation.batch.size") == 1:
        yield "a batch of one"
    # The target without a port or a path: neither has a low cardinality.
    expected = [summary] if summary else [attributes.get("db.namespace"), attributes.get("server.address"), system]
    if span.name not in expected:
        yield f"the name {span.name!r} is not the summary {summary!r}"


def _old_problems(attributes: dict[str, Any]) -> Iterator[str]:
    if attributes.get("db.system") not in OLD_SYSTEMS:
        yield f"db.system is {attributes.get('db.system')!r}"
    if attributes.get("net.transport") not in (None, "ip_tcp", "other"):
        yield f"net.transport is {attributes['net.transport']!r}"
    if ("net.transport" in attributes) != ("net.peer.name" in attributes):
        yield "net.transport and net.peer.name go together"


def _pair_problems(attributes: dict[str, Any]) -> Iterator[str]:
    for stable, old in RENAMED.items():
        value = attributes.get(stable)
        if RENAMED_SYSTEMS.get(value, value) != attributes.get(old) and stable != "server.port":
            yield f"{stable} and {old} differ"
    if attributes.get("server.port", attributes.get("net.peer.port")) != attributes.get("net.peer.port"):
        yield "server.port and net.peer.port differ"


def _outcome_problems(span: ReadableSpan, attributes: dict[str, Any]) -> Iterator[str]:
    status, error, code = span.status, attributes.get("error.type"), attributes.get("db.response.status_code")
    if span.kind is not SpanKind.CLIENT:
        yield f"the kind is {span.kind.name}"
    if not span.name:
        yield "no name"
    if status.status_code is StatusCode.OK:
        yield "the status is OK"
    if (status.status_code is StatusCode.ERROR) != (error is not None):
        yield "error.type is there if and only if the status is ERROR"
    if code is not None and code != error:
        yield "error.type is not the status code"
    if error and status.description and error in status.description:
        yield "the description repeats error.type"
    for event in span.events:
        given = dict(event.attributes or {})
        if event.name != "exception" or not given.keys() <= {"exception.type", "exception.message"} or not given:
            yield f"the event {event.name!r} has {sorted(given)}"


def _metric_problems(metric: Any) -> Iterator[str]:
    if metric.name not in METRICS:
        yield "not in the conventions"
        return
    unit, shape, optional, required = METRICS[metric.name]
    if metric.unit != unit:
        yield f"the unit is {metric.unit!r}"
    if isinstance(shape, bool):
        if not isinstance(metric.data, Sum) or metric.data.is_monotonic is not shape:
            yield "the wrong instrument"
    elif not isinstance(metric.data, Histogram):
        yield "the wrong instrument"
    elif shape and any(tuple(point.explicit_bounds) != shape for point in metric.data.data_points):
        yield "other buckets"
    for point in metric.data.data_points:
        yield from _point_problems(dict(point.attributes), optional, required)


def _point_problems(attributes: dict[str, Any], optional: set[str], required: set[str]) -> Iterator[str]:
    for key in sorted(attributes.keys() - optional):
        yield f"{key} does not belong there"
    for key in sorted(required - attributes.keys()):
        yield f"{key} is missing"
    if attributes.get("db.system.name", "sqlite") not in SYSTEMS:
        yield f"db.system.name is {attributes['db.system.name']!r}"
    if attributes.get(_STATE, "idle") not in ("idle", "used"):
        yield f"{_STATE} is {attributes[_STATE]!r}"
    if attributes.get("server.port") in (0, DEFAULT_PORTS.get(attributes.get("db.system.name", ""), 0)):
        yield "server.port is the default"
    if attributes.get("db.response.status_code", attributes.get("error.type")) != attributes.get("error.type"):
        yield "error.type is not the status code"

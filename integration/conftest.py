from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from oteltest.sink import GrpcSink, HttpSink
from oteltest.sink.handler import AccumulatingHandler
from oteltest.telemetry import extract_leaves
from typing_extensions import Self

from integration.databases import drop_databases, postgresql_url
from tests.conftest import _clean_process, agent, measured, reader, recording, url  # noqa: F401


@pytest.fixture(scope="session")
def postgresql() -> str:
    """
    Return the URL of this process's PostgreSQL database, for asyncpg.
    """
    return postgresql_url()


@pytest.fixture(scope="session", autouse=True)
def _databases() -> Iterator[None]:
    yield
    drop_databases()


class ReceivedSpan(NamedTuple):
    """
    A span as an OTLP receiver gets it.
    """

    service: str
    scope: str
    name: str
    span_id: bytes
    parent_id: bytes
    trace_id: bytes
    attributes: dict[str, Any]
    status: int
    """
    0 unset, 1 ok, 2 error.
    """


class Receiver:
    """
    A real OTLP receiver on this machine, and what arrived.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._handler = AccumulatingHandler()
        port = _free_port()
        logger = logging.getLogger(__name__)
        self._sink: Any = (
            GrpcSink(self._handler, logger, port=port)
            if protocol == "grpc"
            else HttpSink(self._handler, logger, port=port)
        )
        self.environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def __enter__(self) -> Self:
        self._sink.start()
        # A sink of HTTP that is stopped before its thread has made the server would never end.
        while self.protocol != "grpc" and self._sink.httpd is None and self._sink.svr_thread.is_alive():
            time.sleep(0.001)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sink.stop()

    def spans(self) -> list[ReceivedSpan]:
        """
        Return what has arrived, in the order of start times.
        """
        found = []
        for resource_spans in extract_leaves(self._handler.telemetry, "trace_requests", "pbreq", "resource_spans"):
            service = _values(resource_spans.resource.attributes).get("service.name", "")
            for scope_spans in resource_spans.scope_spans:
                found += [
                    (
                        span.start_time_unix_nano,
                        ReceivedSpan(
                            service=service,
                            scope=scope_spans.scope.name,
                            name=span.name,
                            span_id=span.span_id,
                            parent_id=span.parent_span_id,
                            trace_id=span.trace_id,
                            attributes=_values(span.attributes),
                            status=span.status.code,
                        ),
                    )
                    for span in scope_spans.spans
                ]
        return [span for _, span in sorted(found)]

    def metric_requests(self) -> list[Any]:
        """
        Return all exports of metrics, the oldest first.
        """
        return list(self._handler.telemetry.metric_requests)

    def metrics(self) -> dict[str, dict[frozenset[Any], Any]]:
        """
        Return the data points of the last export, by metric and attributes.
        """
        requests = self.metric_requests()[-1:]
        return {
            metric.name: {
                frozenset(_values(point.attributes).items()): point
                for point in getattr(metric, metric.WhichOneof("data")).data_points
            }
            for request in requests
            for resource in request.pbreq.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def wait_for(self, count: int, wanted: Callable[[ReceivedSpan], bool] = lambda span: True) -> list[ReceivedSpan]:
        """
        Wait until so many spans have arrived, at most thirty seconds, and return all that are wanted.
        """
        deadline = time.monotonic() + 30
        while len(spans := list(filter(wanted, self.spans()))) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return spans


@pytest.fixture(params=["grpc", "http/protobuf"], ids=["grpc", "http"])
def each_receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with Receiver(request.param) as receiver:
        yield receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver("http/protobuf") as receiver:
        yield receiver


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

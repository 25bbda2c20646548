"""
Record spans, and write them down so that a whole trace is compared in one assertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from opentelemetry.sdk.trace.sampling import Sampler

AGENT = "otel_async_sqla_agent"


class Recording(SpanProcessor):
    """
    A TracerProvider whose spans are kept: what started, and what ended, in that order.
    """

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.started: list[ReadableSpan] = []
        self.ended: list[ReadableSpan] = []
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(self)
        self.tracer = self.provider.get_tracer("tests")

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)

    def clear(self) -> None:
        self.started.clear()
        self.ended.clear()

    @property
    def names(self) -> list[str]:
        """
        Return the names of the spans in the order they ended; none may be open.
        """
        self.assert_all_ended()
        return [span.name for span in self.ended]

    def assert_all_ended(self) -> None:
        started = sorted(span.context.span_id for span in self.started)
        assert started == sorted(span.context.span_id for span in self.ended)

    def tree(self, *attributes: str) -> list[Any]:
        """
        Return the spans as nested lists in the order they started: `[line, *children]`.

        A line is the name, the kind unless CLIENT, the status unless UNSET, and those of the attributes
        that the span has.
        """
        self.assert_all_ended()
        return self._children(None, attributes)

    def _children(self, parent: int | None, attributes: tuple[str, ...]) -> list[Any]:
        known = {span.context.span_id for span in self.started}
        children = []
        for span in self.started:
            parent_id = span.parent.span_id if span.parent and span.parent.span_id in known else None
            if parent_id == parent:
                children.append([line(span, attributes), *self._children(span.context.span_id, attributes)])
        return children


def database_attributes(span: ReadableSpan) -> dict[str, Any]:
    """
    Return a span's attributes without those of the checkout that it is the first statement after.
    """
    return {key: value for key, value in span.attributes.items() if not key.startswith("async_sqla.pool.")}


def points(reader: Any, name: str) -> dict[frozenset[Any], Any]:
    """
    Collect, and return a metric's data points by their attributes; none where it has not been recorded.
    """
    data = reader.get_metrics_data()
    return {
        frozenset(point.attributes.items()): point
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    }


def line(span: ReadableSpan, attributes: tuple[str, ...] = ()) -> str:
    words = [span.name]
    if span.kind.name != "CLIENT":
        words.append(span.kind.name)
    if span.status.status_code.name != "UNSET":
        words.append(span.status.status_code.name)
    words += [f"{key}={span.attributes[key]!r}" for key in attributes if key in span.attributes]
    return " ".join(words)

"""
Use a driver directly, way by way, without the agent and with it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from tests.conftest import run
from tests.recording import Recording

DATABASE = ("db.system.name", "db.namespace", "server.address", "server.port")

# How to use a connection, and the spans that it gives, as `lines()` writes them.
Way = tuple[Callable[[Any], Awaitable[Any]], list[str]]


def go(
    ways: Mapping[str, Way],
    opened: Callable[[], Awaitable[Any]],
    closed: Callable[[Any], Awaitable[Any]],
    recording: Recording,
) -> dict[str, str]:
    """
    Go each way, in a span of its own, on one connection; return what came of it, or what it raised.
    """

    async def main() -> dict[str, str]:
        results = {}
        connection = await opened()
        for name, (way, _) in ways.items():
            with recording.tracer.start_as_current_span(name) as span:
                try:
                    result = repr(await way(connection))
                except Exception as error:
                    result = repr(error)
                results[name] = re.sub(r"0x[0-9a-f]+", "0x…", result)
                assert trace.get_current_span() is span
        await closed(connection)
        return results

    results: dict[str, str] = run(main())
    return results


def expected(ways: Mapping[str, Way], *, transactions: bool = True) -> dict[str, list[str]]:
    """
    Return the spans that each way is to give, without transaction control if need be; what fails is always there.
    """
    seen = re.compile("" if transactions else r".*( ERROR |: )")
    return {name: list(filter(seen.match, spans)) for name, (_, spans) in ways.items()}


def lines(recording: Recording) -> dict[str, list[str]]:
    """
    Return the spans below each of the caller's own, in the order in which they started, a nested one after a ">".
    """
    recording.assert_all_ended()
    spans = {span.context.span_id: span for span in recording.started}
    found: dict[str, list[str]] = {}
    for span in recording.started:
        if span.kind is trace.SpanKind.INTERNAL:
            found[span.name] = []
            continue
        text = line(span)
        while (parent := spans.get(span.parent.span_id) if span.parent else None) is not None:
            if parent.kind is trace.SpanKind.INTERNAL:
                found[parent.name].append(text)
                break
            text, span = f"> {text}", parent
    return found


def line(span: ReadableSpan) -> str:
    """
    Write down name, status, text and the size of a batch.
    """
    attributes = dict(span.attributes or {})
    failed = "" if span.status.is_unset else f" {span.status.status_code.name} {attributes['error.type']}"
    text = f": {attributes['db.query.text']}" if "db.query.text" in attributes else ""
    size = f" x{attributes['db.operation.batch.size']}" if "db.operation.batch.size" in attributes else ""
    return f"{span.name}{failed}{text}{size}"


def databases(recording: Recording) -> set[tuple[Any, ...]]:
    """
    Return the databases that the spans name.
    """
    clients = [span for span in recording.ended if span.kind is trace.SpanKind.CLIENT]
    return {tuple((span.attributes or {}).get(key) for key in DATABASE) for span in clients}

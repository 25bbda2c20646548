"""
Draw spans as a waterfall in the terminal: `OTEL_TRACES_EXPORTER=waterfall`.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.semconv.attributes.db_attributes import (
    DB_OPERATION_BATCH_SIZE,
    DB_QUERY_TEXT,
    DB_RESPONSE_STATUS_CODE,
    DB_SYSTEM_NAME,
)
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

# The entry point loads this module before it constructs the exporter, which is what can tell the fix.
try:
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    _rich_missing: ImportError | None = error
else:
    _rich_missing = None

_logger = logging.getLogger("otel_async_sqla_agent")

BUFFER_SIZE = 10_000
"""
How many spans wait for their root, and how many drawn ones are remembered as parents of late spans.
"""

_DEEPEST_GUIDE = 18  # characters; a deeper tree goes on without indenting further, to leave room for names
_NARROWEST = 40  # columns
_TIMES = "\N{MULTIPLICATION SIGN}"
# What stands in where the output's encoding has no box drawing: one character for one, so nothing moves.
_ASCII = str.maketrans(f"├└─│█▉▊▋▌▐▍▎▏▕✗⋯·…{_TIMES}", "|`-|######====!~->x")
_KEYWORD = re.compile(r"\b[A-Z]{2,}\b")


class WaterfallSpanExporter(SpanExporter):
    """
    Print each trace as a tree of spans on a common time axis.

    Spans arrive when they end, children before parents and in batches, so they wait until the root of
    their trace in this process is here.

    Args:
        console: Where to draw; stdout if None.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, console: Console | None = None) -> None:
        if _rich_missing is not None:
            raise ImportError(
                "The waterfall exporter needs rich: pip install 'otel-async-sqla-agent[cli]'"
            ) from _rich_missing
        self._console = console
        self._pending = _Pending()
        # SimpleSpanProcessor exports in any thread that ends a span; a signal's flush may interrupt it.
        self._lock = threading.RLock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """
        Print the traces whose root is among the spans, keep the others.
        """
        printed = self._print(lambda: self._pending.add(spans))
        return SpanExportResult.SUCCESS if printed else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's interface
        """
        Print what still waits for its root.
        """
        return self._print(self._pending.take_all)

    def shutdown(self) -> None:
        """
        Print what still waits for its root.
        """
        self._print(self._pending.take_all)

    def _print(self, take: Callable[[], list[list[_Row]]]) -> bool:
        """
        Print what `take` gives.

        Returns:
            False if that failed: the application goes on without its picture.
        """
        try:
            with self._lock:
                for rows in _merge_lone_spans(take()):
                    _write(rows, self._console or _stdout())
        except Exception:  # a closed stdout is no reason to disturb the application
            _logger.debug("otel-async-sqla-agent: the waterfall was not printed.", exc_info=True)
            return False
        return True


class _Row(NamedTuple):
    """
    A span and its place in the tree.
    """

    span: ReadableSpan
    guide: str
    """
    The tree's lines in front of the span's name.
    """
    below: str
    """
    The tree's lines in front of what follows on lines of its own.
    """


class _Pending:
    """
    Hold spans until the span at their top is here.
    """

    def __init__(self) -> None:
        self._traces: dict[int, list[ReadableSpan]] = {}
        self._size = 0
        self._taken: OrderedDict[tuple[int, int], None] = OrderedDict()

    def add(self, spans: Iterable[ReadableSpan]) -> list[list[_Row]]:
        """
        Take in spans and hand out the trees that are complete, and the oldest above the limit.
        """
        tops: dict[int, list[ReadableSpan]] = {}
        for span in spans:
            trace_id = span.context.trace_id
            self._traces.setdefault(trace_id, []).append(span)
            self._size += 1
            if _is_local_root(span) or (trace_id, _parent_id(span)) in self._taken:
                tops.setdefault(trace_id, []).append(span)
        trees = [self._take(trace_id, spans) for trace_id, spans in tops.items()]
        while self._size > BUFFER_SIZE:
            trees.append(self._take_oldest())
        return trees

    def take_all(self) -> list[list[_Row]]:
        """
        Hand out everything.
        """
        trees = []
        while self._traces:
            trees.append(self._take_oldest())
        return trees

    def _take_oldest(self) -> list[_Row]:
        trace_id, spans = next(iter(self._traces.items()))
        here = {span.context.span_id for span in spans}
        tops = [span for span in spans if _parent_id(span) not in here]
        # Spans that are each other's parents have no top: any of them will do.
        return self._take(trace_id, tops or spans[:1])

    def _take(self, trace_id: int, tops: list[ReadableSpan]) -> list[_Row]:
        """
        Hand out some spans of a trace with all that hangs on them.
        """
        children: dict[int | None, list[ReadableSpan]] = {}
        top_ids = set(map(id, tops))
        for span in self._traces.pop(trace_id):
            if id(span) not in top_ids:
                children.setdefault(_parent_id(span), []).append(span)
        rows = list(_tree(tops, children))
        left = list(itertools.chain.from_iterable(children.values()))
        if left:
            self._traces[trace_id] = left
        self._size -= len(rows)
        self._remember(rows)
        return rows

    def _remember(self, rows: list[_Row]) -> None:
        self._taken.update(((row.span.context.trace_id, row.span.context.span_id), None) for row in rows)
        while len(self._taken) > BUFFER_SIZE:
            self._taken.popitem(last=False)


def _tree(tops: list[ReadableSpan], children: dict[int | None, list[ReadableSpan]]) -> Iterator[_Row]:
    """
    Walk the spans from the tops down, in order of start; what was walked leaves `children`.
    """
    # A stack, not recursion: a trace may be deeper than Python's stack.
    stack = [_Row(span, "", "") for span in _latest_first(tops)]
    while stack:
        row = stack.pop()
        spans = _latest_first(children.pop(row.span.context.span_id, []))
        yield row._replace(below=row.below + ("│ " if spans else "  "))
        for number, span in enumerate(spans):
            last = number == 0
            below = row.below + ("   " if last else "│  ")
            stack.append(_Row(span, row.below + ("└─ " if last else "├─ "), below[:_DEEPEST_GUIDE]))


def _latest_first(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    return sorted(spans, key=_start, reverse=True)


def _merge_lone_spans(trees: list[list[_Row]]) -> Iterator[list[_Row]]:
    """
    Put trees in order of start, and neighbours of one span without a parent together.

    In a script with no request around it each statement is a trace of its own.
    """
    trees.sort(key=lambda rows: min(_start(row.span) for row in rows))
    for lone, group in itertools.groupby(trees, key=_is_lone):
        if lone:
            yield list(itertools.chain.from_iterable(group))
        else:
            yield from group


def _is_lone(rows: list[_Row]) -> bool:
    return len(rows) == 1 and rows[0].span.parent is None


def _is_local_root(span: ReadableSpan) -> bool:
    return span.parent is None or span.parent.is_remote


def _parent_id(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def _start(span: ReadableSpan) -> int:
    return span.start_time if span.start_time is not None else span.end_time or 0


def _end(span: ReadableSpan) -> int:
    """
    Return when a span ended; no earlier than it started, whatever the clock said.
    """
    return max(_start(span), span.end_time or 0)


def _stdout() -> Console:
    console = Console(width=shutil.get_terminal_size((100, 24)).columns)
    # `_write` renders to a string first; old Windows consoles would show its colour codes as characters.
    return Console(width=console.width, color_system=None) if console.legacy_windows else console


def _write(rows: list[_Row], console: Console) -> None:
    """
    Render first and write then: rich itself ends the program at a broken pipe.
    """
    with console.capture() as capture:
        console.print()
        for line in _draw(rows, max(_NARROWEST, console.width)):
            console.print(line, soft_wrap=True)
    console.file.write(_encodable(capture.get(), console.encoding))
    console.file.flush()


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _draw(rows: list[_Row], width: int) -> Iterator[Text]:
    """
    Draw a header, and a line for each span with its error below it.
    """
    spans = [row.span for row in rows]
    axis = _Axis(min(map(_start, spans)), max(map(_end, spans)), width // 4)
    systems = sorted({_system(span) for span in spans} - {""})
    label_width = min(max(_label(row).cell_len for row in rows), width * 3 // 10)
    time_width = max(len(_time(span)) for span in spans)
    yield _header(rows, axis, systems)
    for row in rows:
        line = _label(row)
        line.truncate(label_width, overflow="ellipsis", pad=True)
        line.append(f"  {axis.bar(row.span)}", _style(row.span))
        line.append(f"  {_time(row.span):>{time_width}}  ")
        line.append_text(_statement(row.span, with_system=len(systems) > 1))
        line.truncate(width, overflow="ellipsis")
        line.rstrip()
        yield line
        if error := _error(row.span):
            yield Text.assemble((row.below, "dim"), (error, "red"))


class _Axis(NamedTuple):
    """
    The time, in nanoseconds, that a drawing's bars share, and their width in columns.
    """

    begin: int
    end: int
    width: int

    def bar(self, span: ReadableSpan) -> str:
        """
        Draw a span's time, to an eighth of a column and never less than that.
        """
        eighths = self.width * 8
        scale = eighths / max(self.end - self.begin, 1)
        first = min(int((_start(span) - self.begin) * scale), eighths - 1)
        last = max(round((_end(span) - self.begin) * scale), first + 1)
        return "".join(_cell(first - cell, last - cell) for cell in range(0, eighths, 8))


def _cell(first: int, last: int) -> str:
    """
    Draw one column of a bar that goes from one eighth to another, counted from the column's left.
    """
    first, last = max(first, 0), min(last, 8)
    if first >= last:
        return " "
    # Unicode has all eighths from the left, but from the right a half and an eighth only.
    return "██▐▐▐▐▕▕"[first] if last == 8 else " ▏▎▍▌▋▊▉"[last - first]


def _header(rows: list[_Row], axis: _Axis, systems: list[str]) -> Text:
    spans = [row.span for row in rows]
    trace_id = spans[0].context.trace_id
    count = f"{len(spans)} span{'s' if len(spans) > 1 else ''}"
    if any(span.context.trace_id != trace_id for span in spans):
        facts = [f"{count} without a parent"]
    else:
        facts = [f"trace {format_trace_id(trace_id)[:8]}", count]
    facts += [_milliseconds(axis.end - axis.begin), *systems]
    if any(map(_is_detached, rows)):
        facts.append("⋯ parent elsewhere")
    service = _plain(spans[0].resource.attributes.get(SERVICE_NAME, "unknown_service"))
    return Text.assemble((service, "bold"), (" · ".join(["", *facts]), "dim"))


def _label(row: _Row) -> Text:
    marks = ("⋯ " if _is_detached(row) else "") + ("✗ " if _failed(row.span) else "")
    return Text.assemble((row.guide, "dim"), (marks + _plain(row.span.name), _style(row.span)))


def _is_detached(row: _Row) -> bool:
    """
    Tell whether a span that stands at the top has a parent in this process: not here yet, or drawn before.
    """
    return not row.guide and not _is_local_root(row.span)


def _style(span: ReadableSpan) -> str:
    if _failed(span):
        return "red"
    if span.name.partition(" ")[0] == "connect":
        return "magenta"
    return "cyan" if span.kind is SpanKind.CLIENT or _system(span) else "blue"


def _time(span: ReadableSpan) -> str:
    return "open" if span.end_time is None else _milliseconds(_end(span) - _start(span))


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:,.2f} ms"


def _statement(span: ReadableSpan, *, with_system: bool) -> Text:
    """
    Write what a span did: where, how many times and the statement.
    """
    size = _attribute(span, DB_OPERATION_BATCH_SIZE)
    statement = Text(_attribute(span, DB_QUERY_TEXT, "db.statement"), "dim")
    statement.highlight_regex(_KEYWORD, "not dim")
    return Text(" ").join(
        part
        for part in (
            Text(_system(span) if with_system else "", "green"),
            Text(f"{_TIMES}{size}" if size else "", "bold yellow"),
            statement,
        )
        if part
    )


def _error(span: ReadableSpan) -> str:
    """
    Write everything that a span says of its error, each thing once.
    """
    if not _failed(span):
        return ""
    facts = [_attribute(span, ERROR_TYPE), _attribute(span, DB_RESPONSE_STATUS_CODE)]
    facts.append(_plain(span.status.description or ""))
    return ": ".join(dict.fromkeys(filter(None, facts)))


def _failed(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def _system(span: ReadableSpan) -> str:
    return _attribute(span, DB_SYSTEM_NAME, "db.system")


def _attribute(span: ReadableSpan, *names: str) -> str:
    """
    Return the first of some attributes that a span has, else an empty string.
    """
    attributes = span.attributes or {}
    return next((_plain(attributes[name]) for name in names if name in attributes), "")


def _plain(value: object) -> str:
    """
    Write a value in one line, with blanks for what a terminal would take as a command.
    """
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())

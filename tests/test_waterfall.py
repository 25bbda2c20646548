"""
The waterfall exporter, with hand-made spans.
"""

from __future__ import annotations

import io
import itertools
import re
import runpy
import sys
import threading
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from rich.console import Console

from otel_async_sqla_agent import _waterfall
from otel_async_sqla_agent._waterfall import WaterfallSpanExporter

NOON = 1_700_000_000_000_000_000
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SHOP = Resource({"service.name": "shop"})
SQLITE = {"db__system__name": "sqlite"}

_ids = itertools.count(0x100)


def make_span(
    name: str,
    start: float | None = 0,
    end: float | None = 1,
    *,
    trace: int | None = TRACE,
    span_id: int | None = None,
    parent: int | None = None,
    remote: bool = False,
    kind: SpanKind = SpanKind.CLIENT,
    error: str | None = None,
    origin: int = NOON,
    **attributes: Any,
) -> ReadableSpan:
    """
    Make a span; times are milliseconds since noon, `db__system` is the attribute `db.system`.
    """
    trace_id = next(_ids) if trace is None else trace
    return ReadableSpan(
        name,
        SpanContext(trace_id, span_id or next(_ids), False, TraceFlags(1)),
        SpanContext(trace_id, parent, remote, TraceFlags(1)) if parent else None,
        SHOP,
        {key.replace("__", "."): value for key, value in attributes.items()},
        kind=kind,
        status=Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error),
        start_time=None if start is None else origin + int(start * 1e6),
        end_time=None if end is None else origin + int(end * 1e6),
    )


class Screen:
    """
    An exporter and what it has drawn.
    """

    def __init__(self, width: int = 100) -> None:
        self.file = io.StringIO()
        self.exporter = WaterfallSpanExporter(Console(file=self.file, width=width, color_system=None))

    def export(self, *spans: ReadableSpan) -> str:
        """
        Export spans and return what that has drawn.
        """
        assert self.exporter.export(spans) is SpanExportResult.SUCCESS
        return self.drawn()

    def drawn(self) -> str:
        drawn = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return drawn


@pytest.fixture
def screen() -> Screen:
    return Screen()


def names(drawn: str) -> list[str]:
    """
    Return the labels, tree guides included, of the spans in a drawing.
    """
    return re.findall(r"^(.*?\S) +[\u2580-\u259f]", drawn, flags=re.MULTILINE)


def test_draws_trace_as_tree(screen):
    """
    A trace is a tree on one time axis, with each span's time, batch size, statement and error.
    """
    drawn = screen.export(
        make_span("connect", 0.25, 3, parent=1, **SQLITE),
        make_span(
            "INSERT line",
            6,
            14,
            parent=2,
            **SQLITE,
            db__query__text="INSERT INTO line (order_id, product_id)\nVALUES (?, ?)",
            db__operation__batch__size=500,
        ),
        make_span("validate", 5.5, 15, span_id=2, parent=1, kind=SpanKind.INTERNAL),
        make_span(
            "INSERT customer",
            15.25,
            15.75,
            parent=1,
            error="UNIQUE constraint failed: customer.email",
            db__system__name="sqlite",
            db__query__text="INSERT INTO customer (email) VALUES (?)",
            db__response__status_code="2067",
            error__type="2067",
        ),
        make_span("POST /orders", 0, 16, span_id=1, kind=SpanKind.SERVER),
    )

    picture = """
shop · trace 4bf92f35 · 5 spans · 16.00 ms · sqlite
POST /orders          █████████████████████████  16.00 ms
├─ connect            ▐███▊                       2.75 ms
├─ validate                   ▐██████████████▌    9.50 ms
│  └─ INSERT line              ▐███████████▉      8.00 ms  ×500 INSERT INTO line (order_id, product…
└─ ✗ INSERT customer                         ▕▋   0.50 ms  INSERT INTO customer (email) VALUES (?)
     2067: UNIQUE constraint failed: customer.email
"""
    assert drawn == picture


def test_draws_lone_spans_together(screen):
    """
    Neighbouring spans without parent or children share one drawing, in order of start; a trace divides them.
    """
    drawn = screen.export(
        make_span("SELECT a", 10, 20, trace=None, db__query__text="SELECT a.id FROM a"),
        make_span("connect", 0, 10, trace=None),
        make_span("child", 21, 22, trace=7, parent=1),
        make_span("task", 20, 23, trace=7, span_id=1, kind=SpanKind.INTERNAL),
        make_span("SELECT b", 30, 31, trace=8),
    )

    picture = """
shop · 2 spans without a parent · 20.00 ms
connect   ████████████▌              10.00 ms
SELECT a              ▐████████████  10.00 ms  SELECT a.id FROM a

shop · trace 00000000 · 2 spans · 3.00 ms
task      █████████████████████████  3.00 ms
└─ child          ▐███████▋          1.00 ms

shop · trace 00000000 · 1 span · 1.00 ms
SELECT b  █████████████████████████  1.00 ms
"""
    assert drawn == picture


def test_names_system_on_each_line_where_there_are_several(screen):
    """
    The header names all systems; only a drawing of several says which span talked to which.
    """
    drawn = screen.export(
        make_span("SELECT a", trace=None, db__system="postgresql", db__statement="SELECT a.id FROM a"),
        make_span("SELECT b", trace=None, db__system__name="sqlite", db__query__text="SELECT b.id FROM b"),
        make_span("GET", trace=None),
    )

    picture = """
shop · 3 spans without a parent · 1.00 ms · postgresql · sqlite
SELECT a  █████████████████████████  1.00 ms  postgresql SELECT a.id FROM a
SELECT b  █████████████████████████  1.00 ms  sqlite SELECT b.id FROM b
GET       █████████████████████████  1.00 ms
"""
    assert drawn == picture


@pytest.mark.parametrize(
    ("span", "below"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"error__type": "TimeoutError"}, ["  TimeoutError"], id="type"),
        pytest.param({"error__type": "E", "db__response__status_code": "1"}, ["  E: 1"], id="type-and-code"),
        pytest.param({"error": "no\n  such table"}, ["  no such table"], id="description"),
    ],
)
def test_writes_what_is_known_of_an_error(screen, span, below):
    """
    A failed span has a mark, and below it what its status and attributes say, each thing once.
    """
    drawn = screen.export(make_span("q", **{"error": "", **span}))

    assert names(drawn) == ["✗ q"]
    assert drawn.splitlines()[3:] == below


def test_status_code_is_no_error(screen):
    """
    A span that didn't fail has nothing below it, though its database gave a code.
    """
    drawn = screen.export(make_span("q", db__response__status_code="0"))

    assert names(drawn) == ["q"]
    assert drawn.splitlines()[3:] == []


def test_waits_for_the_root(screen):
    """
    Children, which end first, are drawn once the root is there, whatever batches they came in.
    """
    assert screen.export(make_span("b", 2, 3, parent=1)) == ""
    assert screen.export(make_span("a", 1, 2, parent=1)) == ""
    assert names(screen.export(make_span("root", 0, 4, span_id=1))) == ["root", "├─ a", "└─ b"]


def test_draws_late_span_on_its_own(screen):
    """
    A span whose parent has been drawn is drawn when it arrives, with what waited for it.
    """
    screen.export(make_span("root", 0, 4, span_id=1))
    assert screen.export(make_span("grandchild", 6, 7, parent=2)) == ""

    picture = """
shop · trace 4bf92f35 · 2 spans · 3.00 ms · ⋯ parent elsewhere
⋯ child        █████████████████████████  3.00 ms
└─ grandchild          ▐███████▋          1.00 ms
"""
    assert screen.export(make_span("child", 5, 8, span_id=2, parent=1)) == picture


@pytest.mark.parametrize("flush", ["force_flush", "shutdown"])
def test_draws_orphans_at_a_flush(screen, flush):
    """
    Spans whose parent never came are drawn at the latest when the exporter is flushed or shut down.
    """
    assert screen.export(make_span("a", 0, 1, parent=1), make_span("b", 2, 3, parent=1)) == ""

    getattr(screen.exporter, flush)()

    assert names(screen.drawn()) == ["⋯ a", "⋯ b"]
    getattr(screen.exporter, flush)()
    assert screen.drawn() == ""


def test_remote_parent_makes_a_root(screen):
    """
    The span that continues another process's trace is a root here, and a drawing of its own.
    """
    drawn = screen.export(
        make_span("GET /", 0, 1, trace=1, parent=9, remote=True),
        make_span("PUT /", 0, 1, trace=2, parent=9, remote=True),
    )

    assert names(drawn) == ["GET /", "PUT /"]
    assert "parent" not in drawn


def test_roots_of_one_trace_are_drawn_each_in_its_time(screen):
    """
    Two requests of one distributed trace are two drawings; the second's children wait for their own root.
    """
    waiting = make_span("second", 3, 4, parent=2)
    drawn = screen.export(waiting, make_span("GET /1", 0, 1, span_id=1, parent=9, remote=True))

    assert names(drawn) == ["GET /1"]
    assert names(screen.export(make_span("GET /2", 2, 5, span_id=2, parent=9, remote=True))) == [
        "GET /2",
        "└─ second",
    ]


def test_buffer_is_bounded(screen, monkeypatch):
    """
    Above the limit the traces that have waited longest are drawn as they are.
    """
    monkeypatch.setattr(_waterfall, "BUFFER_SIZE", 2)
    waiting = [make_span(name, trace=trace, parent=1) for name, trace in zip("abc", (1, 2, 3), strict=True)]

    assert names(screen.export(*waiting)) == ["⋯ a"]
    assert screen.export() == ""


def test_memory_of_drawn_spans_is_bounded(screen, monkeypatch):
    """
    A span that is late by more spans than are remembered waits for the flush.
    """
    monkeypatch.setattr(_waterfall, "BUFFER_SIZE", 2)
    screen.export(make_span("root", trace=1, span_id=1))
    screen.export(make_span("x", trace=2), make_span("y", trace=3))

    assert screen.export(make_span("late", trace=1, parent=1)) == ""


@pytest.mark.parametrize(
    ("start", "end", "origin", "time"),
    [
        pytest.param(0, None, NOON, "open", id="not-ended"),
        pytest.param(None, None, NOON, "open", id="no-times"),
        pytest.param(None, 5, NOON, "0.00 ms", id="not-started"),
        pytest.param(0, 0, NOON, "0.00 ms", id="no-duration"),
        pytest.param(0, 0, 0, "0.00 ms", id="epoch"),
        pytest.param(0, 5, 0, "5.00 ms", id="from-the-epoch"),
        pytest.param(5, 0, NOON, "0.00 ms", id="clock-went-back"),
    ],
)
def test_odd_times(screen, start, end, origin, time):
    """
    A span with odd times has a line with a visible bar like any other.
    """
    line = screen.export(make_span("q", start, end, origin=origin)).splitlines()[2]

    assert line.endswith(f"  {time}")
    assert line.removeprefix("q  ")[0] in "▏█"


def test_short_span_is_visible_wherever_it_is():
    """
    A span of no length has a sliver of a bar inside the axis.
    """
    axis = _waterfall._Axis(0, 1_000_000, 10)

    bars = [axis.bar(make_span("q", at, at, origin=0)) for at in (0, 0.3, 0.5, 0.999, 1)]

    assert bars == ["▏         ", "   ▏      ", "     ▏    ", "         ▕", "         ▕"]


def test_child_outside_its_parents_time(screen):
    """
    The axis spans everything, also a child that began before its parent.
    """
    picture = """
shop · trace 4bf92f35 · 2 spans · 10.00 ms
root                  ▐████████████  5.00 ms
└─ child  ████████████▌              5.00 ms
"""
    assert screen.export(make_span("child", -5, 0, parent=1), make_span("root", 0, 5, span_id=1)) == picture


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        pytest.param("[red]a[/red] [/]", "[red]a[/red] [/]", id="markup"),
        pytest.param(":boom:", ":boom:", id="emoji-code"),
        pytest.param("a\r\n\tb  c\u2028d", "a b c d", id="newlines"),
        pytest.param("\x1b[31ma\x07\x9b0m", "[31ma 0m", id="control-characters"),
        pytest.param("\u202egnp", "gnp", id="right-to-left-override"),
        pytest.param("商品 é", "商品 é", id="non-ascii"),
        pytest.param("\ud800", "", id="surrogate"),
    ],
)
def test_text_is_drawn_as_it_is_in_one_line(screen, text, drawn):
    """
    Names and statements are neither markup nor commands to the terminal.
    """
    line = screen.export(make_span(f"n {text}", db__query__text=f"q {text}")).splitlines()[2]

    assert [f"n {drawn}".rstrip(), "1.00 ms", f"q {drawn}".rstrip()] == [
        part.strip() for part in line.split("  ") if part.strip(" █")
    ]


def test_spans_that_are_each_others_parents(screen):
    """
    Spans without any top are drawn all the same, each once.
    """
    screen.export(
        make_span("a", 0, 3, span_id=1, parent=2),
        make_span("b", 1, 2, span_id=2, parent=1),
        make_span("self", 4, 5, span_id=3, parent=3),
    )
    screen.exporter.shutdown()

    assert names(screen.drawn()) == ["⋯ a", "└─ b", "⋯ self"]


def test_deep_tree_stays_within_the_width(screen):
    """
    A tree deeper than Python's stack and than the screen is drawn, with each name and no line too long.
    """
    depth = sys.getrecursionlimit() + 1
    text = {"db__query__text": "q" * 99}

    drawn = screen.export(*(make_span(f"q{n}", n, n + 1, span_id=n + 1, parent=n, **text) for n in range(depth)))

    assert [name.split()[-1] for name in names(drawn)][1:] == [f"q{n}" for n in range(1, depth)]
    assert {len(line) for line in drawn.splitlines()[2:]} == {100}


def test_narrow_console_gets_whole_lines():
    """
    Where hardly anything fits the drawing keeps a least width and leaves wrapping to the terminal.
    """
    lines = Screen(width=1).export(make_span("SELECT product", db__query__text="q" * 99)).splitlines()

    assert lines[2] == "SELECT prod…  ██████████  1.00 ms  qqqq…"


class NotUnicode(io.TextIOWrapper):
    """
    A stdout that can't write everything.
    """

    def __init__(self, encoding: str) -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, newline="\n")


@pytest.mark.parametrize(("encoding", "name"), [("ascii", "caf? ?"), ("latin-1", "caf\xe9 ?"), ("cp437", "caf\xe9 ?")])
def test_output_without_block_characters(encoding, name):
    """
    Where the encoding lacks something, ASCII characters stand in, in the same columns.
    """
    stdout = NotUnicode(encoding)
    exporter = WaterfallSpanExporter(Console(file=stdout, width=60, color_system=None))

    exporter.export(
        [
            make_span("caf\xe9 \N{SNOWMAN}", 1, 3, parent=1, db__query__text="q" * 99, db__operation__batch__size=2),
            make_span("late", 2, 3, parent=1, error="no"),
            make_span("root", 0, 4, span_id=1, parent=2),
        ]
    )
    exporter.shutdown()

    picture = f"""
shop - trace 4bf92f35 - 3 spans - 4.00 ms - ~ parent elsewhere
~ root     ###############  4.00 ms
|- {name}     =#######=     2.00 ms  x2 qqqqqqqqqqqqqqqqqqq>
`- ! late         ####=     1.00 ms
     no
"""
    assert stdout.bytes.getvalue().decode(encoding) == picture


def test_closed_stdout(monkeypatch):
    """
    A program that closed its stdout is not disturbed.
    """
    stdout = io.StringIO()
    stdout.close()
    monkeypatch.setattr(sys, "stdout", stdout)
    exporter = WaterfallSpanExporter()

    assert SpanExportResult.FAILURE is exporter.export([make_span("a"), make_span("b", parent=1)])
    assert exporter.force_flush() is False
    exporter.shutdown()


def test_no_stdout(monkeypatch):
    """
    A program that has no stdout at all is not disturbed.
    """
    monkeypatch.setattr(sys, "stdout", None)

    assert SpanExportResult.SUCCESS is WaterfallSpanExporter().export([make_span("a")])


class BrokenPipe(io.StringIO):
    """
    The stdout of `program | head`.
    """

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_broken_pipe(monkeypatch):
    """
    Unlike rich alone, the exporter doesn't end the program when nobody reads its output any more.
    """
    monkeypatch.setattr(sys, "stdout", BrokenPipe())

    assert SpanExportResult.FAILURE is WaterfallSpanExporter().export([make_span("a")])


def test_failure_is_not_repeated(screen):
    """
    What can't be drawn is reported as failed and dropped, so that the next export is free of it.
    """
    nameless = make_span(None)

    assert SpanExportResult.FAILURE is screen.exporter.export([nameless])
    assert names(screen.export(make_span("a"))) == ["a"]


def stdout_lines(monkeypatch: pytest.MonkeyPatch, **environ: str) -> list[str]:
    """
    Return what an exporter without arguments prints, with only these of the variables that rule its look.
    """
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environ}.items():
        monkeypatch.setenv(name, value)
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "__stdout__", stdout)
    WaterfallSpanExporter().export([make_span("connect", db__query__text="q" * 200)])
    return stdout.getvalue().splitlines()


@pytest.mark.parametrize(("environ", "width"), [({}, 100), ({"COLUMNS": "120"}, 120), ({"COLUMNS": "x"}, 100)])
def test_prints_plain_lines_to_what_is_no_terminal(monkeypatch, environ, width):
    """
    In a file or a pipe there are no colour codes, and lines are as wide as COLUMNS says, else 100.
    """
    lines = stdout_lines(monkeypatch, **environ)

    assert lines[:2] == ["", "shop · trace 4bf92f35 · 1 span · 1.00 ms"]
    assert [width] == [len(line) for line in lines[2:]]


@pytest.mark.parametrize(
    ("span", "label"),
    [
        pytest.param({"name": "SELECT a"}, "\x1b[36mSELECT a\x1b[0m", id="client"),
        pytest.param({"name": "q", "kind": SpanKind.INTERNAL, **SQLITE}, "\x1b[36mq\x1b[0m", id="database"),
        pytest.param({"name": "connect"}, "\x1b[35mconnect\x1b[0m", id="connect"),
        pytest.param({"name": "task", "kind": SpanKind.INTERNAL}, "\x1b[34mtask\x1b[0m", id="other"),
        pytest.param({"name": "a", "error": ""}, "\x1b[31m✗ a\x1b[0m", id="error"),
    ],
)
def test_colours_tell_the_kinds_apart(span, label):
    """
    In a terminal database spans, connects, other spans and errors have a colour each.
    """
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard", no_color=False)

    WaterfallSpanExporter(console).export([make_span(**span)])

    assert file.getvalue().splitlines()[2].startswith(label)


def test_keywords_stand_out():
    """
    In a terminal a statement is dim but for its keywords.
    """
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard", no_color=False)

    WaterfallSpanExporter(console).export([make_span("q", db__query__text="SELECT a.id FROM a")])

    assert file.getvalue().endswith("SELECT\x1b[2m a.id \x1b[0mFROM\x1b[2m a\x1b[0m\n")


class InterruptedFile(io.StringIO):
    """
    A stdout that a signal interrupts, whose handler flushes the exporter.
    """

    exporter: WaterfallSpanExporter

    def write(self, text: str) -> int:
        self.exporter.force_flush()
        return super().write(text)


def test_flush_may_interrupt_an_export():
    """
    A flush in the middle of an export, as signal handlers do it, doesn't wait for that export.
    """
    file = InterruptedFile()
    file.exporter = WaterfallSpanExporter(Console(file=file, width=100, color_system=None))
    thread = threading.Thread(target=file.exporter.export, args=[[make_span("q")]], daemon=True)

    thread.start()
    thread.join(timeout=10)

    assert names(file.getvalue()) == ["q"]


@pytest.mark.parametrize("processor", [BatchSpanProcessor, SimpleSpanProcessor])
def test_works_behind_the_sdk_processors(screen, processor):
    """
    Real spans come out as the tree that they were made as.
    """
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(screen.exporter))
    tracer = provider.get_tracer("test")

    with tracer.start_as_current_span("root"):
        with tracer.start_as_current_span("a"), tracer.start_as_current_span("deep"):
            pass
        with tracer.start_as_current_span("b"):
            pass
    provider.shutdown()

    assert names(screen.drawn()) == ["root", "├─ a", "│  └─ deep", "└─ b"]


def test_is_what_the_entry_point_names():
    """
    `OTEL_TRACES_EXPORTER=waterfall` finds the exporter.
    """
    (entry_point,) = entry_points(group="opentelemetry_traces_exporter", name="waterfall")

    assert WaterfallSpanExporter is entry_point.load()


def test_tells_how_to_get_rich(monkeypatch):
    """
    Without rich the module can be loaded; constructing the exporter tells what to install.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    exporter = runpy.run_path(_waterfall.__file__)["WaterfallSpanExporter"]

    with pytest.raises(ImportError, match=r"pip install 'otel-async-sqla-agent\[cli\]'"):
        exporter()

from __future__ import annotations

import re
from collections.abc import Callable
from sys import getsizeof
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from otel_async_sqla_agent import _facts
from otel_async_sqla_agent._config import AttributeNames, Config, QueryText
from otel_async_sqla_agent._facts import LONG_TEXT_READ, FactsReader, Statement, StatementFacts
from otel_async_sqla_agent._sql import READ_LIMIT, read_sql
from tests.conftest import run
from tests.recording import Recording, points


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """
    Return what is read from now on: text and limit.
    """
    found = []

    def spy(sql: str, system: str, limit: int) -> Any:
        found.append((sql, limit))
        return read_sql(sql, system, limit)

    monkeypatch.setattr(_facts, "read_sql", spy)
    return found


def statement(sql: str) -> tuple[str, bool, bool, str]:
    return sql, False, False, "sqlite"


def test_text_is_read_once(read: list[Any]) -> None:
    """
    What a text says is remembered, apart for each of the things that it depends on.
    """
    reader = FactsReader(Config())
    calls = [
        ("SELECT 1", False, False, "sqlite"),
        ("SELECT 1", True, False, "sqlite"),
        ("SELECT 1", False, True, "sqlite"),
        ("SELECT 1", False, False, "mysql"),
    ]
    assert [None] * 4 == [_known(reader, call) for call in calls]
    facts = [reader.read(call) for call in calls]
    assert facts == [_known(reader, call) for call in calls]
    assert 4 == len(read)


def _known(reader: FactsReader, call: Statement) -> StatementFacts | None:
    return reader.recent.get(call) or reader.older(call)


def _remembered(reader: FactsReader) -> dict[Any, Any]:
    return {**reader._old, **reader.recent}


def test_cache_is_bounded_in_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Of many texts the last are remembered, and one that is asked for again and again.
    """
    monkeypatch.setattr(_facts, "CACHED_TEXTS", 8)
    reader = FactsReader(Config())
    often = statement("SELECT often")
    reader.read(often)
    for number in range(40):
        reader.read(statement(f"SELECT {number}"))
        assert _known(reader, often)
        assert len(_remembered(reader)) <= 8
    assert _known(reader, statement("SELECT 37"))
    assert _known(reader, statement("SELECT 0")) is None


def test_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Long texts, as bulk INSERTs are, take no more memory than is set.
    """
    monkeypatch.setattr(_facts, "CACHED_BYTES", 40_000)
    reader = FactsReader(Config())
    for number in range(40):
        reader.read(statement(f"SELECT {number}".ljust(1000, "\N{GRINNING FACE}")))
        kept = _remembered(reader)
        texts = [key[0] for key in kept] + [text for facts in kept.values() for text in facts.attributes.values()]
        assert sum(map(getsizeof, texts)) <= 40_000
    assert 2 < len(kept) < 40


@pytest.mark.parametrize(
    ("length", "limit"),
    [
        pytest.param(2048, LONG_TEXT_READ, id="default"),
        pytest.param(10_000, 10_000, id="more-is-shown"),
        pytest.param(10**6, READ_LIMIT, id="all-is-shown"),
    ],
)
def test_long_text(length: int, limit: int, read: list[Any]) -> None:
    """
    A text that is too long to be remembered is read only as far as it can be shown, and never beyond 16 KiB.
    """
    reader = FactsReader(Config(query_max_length=length, attribute_names=AttributeNames.STABLE))
    long = statement("SELECT a FROM t WHERE x IN (" + "'canary', " * READ_LIMIT)
    facts = reader.read(long)
    assert _known(reader, long) is None
    assert {} == _remembered(reader)
    assert [(long[0], limit)] == read
    assert "SELECT t" == facts.name
    assert "canary" not in facts.attributes["db.query.text"]
    assert len(facts.attributes["db.query.text"]) <= min(length, READ_LIMIT)


@pytest.mark.parametrize("place", [0, READ_LIMIT - len("canary"), READ_LIMIT], ids=["begin", "last", "beyond"])
def test_exclude_reads_no_further(place: int) -> None:
    """
    EXCLUDE is searched as far as a text is read.
    """
    reader = FactsReader(Config(exclude=re.compile("canary")))
    assert (place < READ_LIMIT) == reader.read(statement(" " * place + "canary" + " " * READ_LIMIT)).excluded


@pytest.mark.parametrize(
    ("text", "length", "shown"),
    [
        pytest.param("SELECT", 6, "SELECT", id="fits"),
        pytest.param("SELECT 'ä'", 6, "SELEC…", id="cut"),
        pytest.param("\N{GRINNING FACE}\N{GRINNING FACE}\N{GRINNING FACE}", 2, "\N{GRINNING FACE}…", id="characters"),
        pytest.param("SELECT", 1, "…", id="nothing-left"),
    ],
)
def test_cut(text: str, length: int, shown: str) -> None:
    """
    A text is cut between characters, and the cut is marked.
    """
    assert shown == _facts.cut(text, length)


@pytest.mark.parametrize("length", range(1, 40))
def test_cut_leaves_no_literal(length: int) -> None:
    """
    A text is masked before it is cut.
    """
    config = Config(query_text=QueryText.MASKED, query_max_length=length, attribute_names=AttributeNames.STABLE)
    shown = FactsReader(config).read(statement("SELECT 'ZZZ', 'ZZZ', 77777 FROM t")).attributes["db.query.text"]
    assert len(shown) <= length
    assert not re.search("[Z7]", shown)


@pytest.mark.parametrize(
    ("sql", "procedure"),
    [
        pytest.param("CALL shop.restock(1)", "shop.restock", id="call"),
        pytest.param("exec dbo.restock @a = 1", "dbo.restock", id="exec"),
        pytest.param("CALL a(); CALL b()", None, id="several"),
        pytest.param("CALL", None, id="no-name"),
        pytest.param("SELECT restock()", None, id="function"),
    ],
)
def test_stored_procedure(sql: str, procedure: str | None) -> None:
    """
    A statement that does nothing but call a stored procedure says its name.
    """
    facts = FactsReader(Config(attribute_names=AttributeNames.STABLE)).read(statement(sql))
    assert procedure == facts.attributes.get("db.stored_procedure.name")


LONG = "SELECT 1" + " " * READ_LIMIT


def _execute_below_unsampled(sql: str, recording: Recording) -> None:
    unsampled = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0))

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            with trace.use_span(trace.NonRecordingSpan(unsampled)):
                await connection.execute(text(sql))
        await engine.dispose()

    run(main())
    recording.assert_all_ended()


@pytest.mark.parametrize(
    ("sql", "metrics", "reads", "summary"),
    [
        pytest.param("SELECT 1", False, 0, None, id="no-metrics"),
        pytest.param("SELECT 1", True, 1, "SELECT", id="metrics"),
        pytest.param(LONG, False, 0, None, id="long"),
        pytest.param(LONG, True, 0, None, id="long-with-metrics"),
    ],
)
def test_unsampled_parent(
    sql: str,
    metrics: bool,
    reads: int,
    summary: str | None,
    read: list[Any],
    measured: Callable[..., None],
    reader: InMemoryMetricReader,
) -> None:
    """
    Below a parent that is not sampled no text is read, but for the metric once; the duration is recorded.
    """
    recording = Recording(ParentBased(ALWAYS_ON))
    measured(recording.provider, metrics=metrics)
    for _ in range(3):
        _execute_below_unsampled(sql, recording)
    assert reads == len(read)
    assert "SELECT" not in recording.names
    durations = points(reader, "db.client.operation.duration")
    assert ([3] if metrics else []) == [point.count for point in durations.values()]
    assert ({summary} if metrics else set()) == {dict(point).get("db.query.summary") for point in durations}


def test_sampler_that_does_not_ask_the_parent(read: list[Any], measured: Callable[..., None]) -> None:
    """
    A span that is recorded below an unsampled parent has its name and its text.
    """
    recording = Recording(ALWAYS_ON)
    measured(recording.provider, metrics=False)
    _execute_below_unsampled("SELECT 1", recording)
    assert ("SELECT", "SELECT ?") == (recording.ended[-1].name, recording.ended[-1].attributes["db.statement"])

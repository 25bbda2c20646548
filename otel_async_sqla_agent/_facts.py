"""
Compute once per distinct SQL text what every execution of it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from sys import getsizeof
from typing import TYPE_CHECKING

from ._config import Config, QueryText
from ._semconv import Attributes, statement_attributes
from ._sql import READ_LIMIT, read_sql

if TYPE_CHECKING:
    from typing import Final

CACHED_TEXTS: Final = 512
CACHED_BYTES: Final = 4 * 1024 * 1024
# Characters of a text that is too long for the cache, where no more than that is shown: it is read each time.
LONG_TEXT_READ: Final = 4096
METRIC_SUMMARIES: Final = 500
OTHER_SUMMARIES: Final = "_OTHER"
# A span has room for 128 attributes, and drops the oldest.
CAPTURED_PARAMETERS: Final = 64
CUT_MARK: Final = "…"


# What the facts depend on: the SQL, whether the values are apart from it, whether it is a batch, and the
# `db.system.name`. A plain tuple: one is made for each execution.
Statement = tuple[str, bool, bool, str]


@dataclass(frozen=True, slots=True)  # faster to read from than a tuple with names
class StatementFacts:
    """
    What a text says.
    """

    name: str
    """
    The summary; empty where there is none.
    """

    attributes: Attributes
    excluded: bool
    metric_summary: str


class FactsReader:
    """
    Read texts, and remember what they say.

    What is remembered is bounded in entries and in bytes: two halves, of which the older one is dropped when the newer
    one is full. What is asked for again moves to the newer one.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.recent: dict[Statement, StatementFacts] = {}
        """
        The newer half; always the same dictionary, so that it can be asked without a call.
        """
        self._old: dict[Statement, StatementFacts] = {}
        self._recent_bytes = 0
        self._metric_summaries: set[str] = set()

    def older(self, statement: Statement) -> StatementFacts | None:
        """
        Look a text up that is not among the recent ones, and make it one of them.
        """
        facts = self._old.get(statement)
        if facts is not None:
            self._remember(statement, facts)
        return facts

    def read(self, statement: Statement) -> StatementFacts:
        """
        Read a text, and remember what it says unless it is too long.
        """
        config, (sql, parameterised, is_batch, system) = self._config, statement
        is_long = len(sql) > READ_LIMIT
        limit = min(READ_LIMIT, max(LONG_TEXT_READ, config.query_max_length)) if is_long else READ_LIMIT
        reading = read_sql(sql, system, limit)
        summary = f"BATCH {reading.summary}" if is_batch and reading.summary else reading.summary
        texts = {
            QueryText.AUTO: sql if parameterised else reading.masked,
            QueryText.MASKED: reading.masked,
            QueryText.RAW: sql,
            QueryText.OFF: "",
        }
        facts = StatementFacts(
            name=summary,
            attributes=statement_attributes(
                config.attribute_names,
                operation=reading.operation,
                summary=summary,
                text=cut(texts[config.query_text], config.query_max_length),
                procedure=_procedure(reading.operation, reading.summary),
            ),
            metric_summary=self._metric_summary(summary),
            excluded=config.exclude is not None and config.exclude.search(sql, 0, READ_LIMIT) is not None,
        )
        if not is_long:
            self._remember(statement, facts)
        return facts

    def _remember(self, statement: Statement, facts: StatementFacts) -> None:
        size = getsizeof(statement[0]) + sum(map(getsizeof, facts.attributes.values()))
        if len(self.recent) >= CACHED_TEXTS // 2 or self._recent_bytes + size > CACHED_BYTES // 2:
            self._old, self._recent_bytes = dict(self.recent), 0
            self.recent.clear()
        self.recent[statement] = facts
        self._recent_bytes += size

    def _metric_summary(self, summary: str) -> str:
        """
        Keep the metric's cardinality bounded, whatever the application's SQL is made of.
        """
        if len(self._metric_summaries) < METRIC_SUMMARIES:
            self._metric_summaries.add(summary)
        return summary if summary in self._metric_summaries else OTHER_SUMMARIES


def cut(text: str, length: int) -> str:
    """
    Shorten a text that is longer, and mark that.
    """
    return text if len(text) <= length else text[: length - len(CUT_MARK)] + CUT_MARK


def parameter_attributes(values: object, length: int) -> Attributes:
    """
    Write down the parameters of one execution, as strings: that is what the conventions want.

    Args:
        values: By name or by position; what is neither is the only one.
        length: The most characters of a value.
    """
    if isinstance(values, Mapping):
        items: Iterable[tuple[object, object]] = values.items()
    else:
        items = enumerate(values if isinstance(values, (list, tuple)) else (values,))
    return {f"db.query.parameter.{key}": _written(value, length) for key, value in islice(items, CAPTURED_PARAMETERS)}


def _written(value: object, length: int) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    try:
        return cut(str(value), length)
    except Exception:  # noqa: BLE001 - a class of the application's
        return type(value).__qualname__


def _procedure(operation: str, summary: str) -> str:
    """
    Return the name of the stored procedure, where a text does nothing but call one.
    """
    name = summary[len(operation) + 1 :]
    return name if operation.upper() in ("CALL", "EXEC") and " " not in name else ""

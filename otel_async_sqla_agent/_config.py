"""
Build the configuration from environment variables.
"""

from __future__ import annotations

import enum
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from .environment_variables import (
    OTEL_ASYNC_SQLA_CAPTURE,
    OTEL_ASYNC_SQLA_EXCLUDE,
    OTEL_ASYNC_SQLA_FLUSH_ON_EXIT,
    OTEL_ASYNC_SQLA_METRICS,
    OTEL_ASYNC_SQLA_MIN_DURATION_MS,
    OTEL_ASYNC_SQLA_MODE,
    OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH,
    OTEL_ASYNC_SQLA_QUERY_TEXT,
    OTEL_ASYNC_SQLA_REQUIRE_PARENT,
    OTEL_ASYNC_SQLA_SDK,
    OTEL_ASYNC_SQLA_SPANS,
)

_logger = logging.getLogger("otel_async_sqla_agent")
_T = TypeVar("_T")

OTEL_SEMCONV_STABILITY_OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"


class Mode(enum.Enum):
    """
    Which layers make spans; see docs/design.md for the table.
    """

    AUTO = "auto"
    ENGINE = "engine"
    DRIVER = "driver"
    BOTH = "both"
    OFF = "off"


class QueryText(enum.Enum):
    """
    What becomes of the SQL text of a statement.
    """

    AUTO = "auto"
    MASKED = "masked"
    RAW = "raw"
    OFF = "off"


class Capture(enum.Enum):
    """
    What a statement's span says besides, if it is asked for.
    """

    PARAMETERS = "parameters"
    ROWS = "rows"


class SpanType(enum.Enum):
    """
    The calls that can make a span.
    """

    STATEMENT = "statement"
    CONNECT = "connect"
    TRANSACTION = "transaction"


class Sdk(enum.Enum):
    """
    Whether the agent configures the SDK where nobody else has.
    """

    OFF = "off"
    AUTO = "auto"


class AttributeNames(enum.Enum):
    """
    Which attribute names a span has, as `OTEL_SEMCONV_STABILITY_OPT_IN` says.
    """

    OLD = ""
    STABLE = "database"
    DUP = "database/dup"


@dataclass(frozen=True)
class Config:
    """
    What the environment says; every field has a default that leaks nothing.
    """

    mode: Mode = Mode.AUTO
    spans: frozenset[SpanType] = frozenset({SpanType.STATEMENT, SpanType.CONNECT})
    query_text: QueryText = QueryText.AUTO
    query_max_length: int = 2048
    capture: frozenset[Capture] = frozenset()
    min_duration_ms: float = 0
    require_parent: bool = False
    exclude: re.Pattern[str] | None = None
    metrics: bool = True
    sdk: Sdk = Sdk.OFF
    flush_on_exit: bool = True
    attribute_names: AttributeNames = AttributeNames.OLD

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """
        Read the variables; a bad value warns once and leaves the default.
        """
        read = _Reader(environ)
        mode = read(OTEL_ASYNC_SQLA_MODE, _member(Mode), _names(Mode), cls.mode)
        return cls(
            mode=mode,
            spans=read(OTEL_ASYNC_SQLA_SPANS, _members(SpanType), _list_of(SpanType), cls.spans),
            query_text=read(OTEL_ASYNC_SQLA_QUERY_TEXT, _member(QueryText), _names(QueryText), cls.query_text),
            query_max_length=read(
                OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH, _length, "a whole number from 1", cls.query_max_length
            ),
            capture=read(OTEL_ASYNC_SQLA_CAPTURE, _members(Capture), _list_of(Capture), cls.capture),
            min_duration_ms=_nestable(
                mode,
                read(OTEL_ASYNC_SQLA_MIN_DURATION_MS, _milliseconds, "a number of milliseconds", cls.min_duration_ms),
            ),
            require_parent=read(OTEL_ASYNC_SQLA_REQUIRE_PARENT, _boolean, "true, false", cls.require_parent),
            exclude=read(OTEL_ASYNC_SQLA_EXCLUDE, _pattern, "a regular expression", cls.exclude),
            metrics=read(OTEL_ASYNC_SQLA_METRICS, _boolean, "true, false", cls.metrics),
            sdk=read(OTEL_ASYNC_SQLA_SDK, _member(Sdk), _names(Sdk), cls.sdk),
            flush_on_exit=read(OTEL_ASYNC_SQLA_FLUSH_ON_EXIT, _boolean, "true, false", cls.flush_on_exit),
            attribute_names=_attribute_names(environ.get(OTEL_SEMCONV_STABILITY_OPT_IN, "")),
        )


class _Reader:
    """
    Parse one variable after the other; a value that its parser rejects with ValueError warns.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __call__(self, variable: str, parse: Callable[[str], _T], accepted: str, default: _T) -> _T:
        value = self._environ.get(variable, "").strip()
        if not value:
            return default
        try:
            return parse(value)
        except ValueError:
            _logger.warning("%s=%r is not valid and is ignored; accepted: %s", variable, value, accepted)
            return default


_Member = TypeVar("_Member", bound=enum.Enum)


def _member(members: type[_Member]) -> Callable[[str], _Member]:
    return lambda value: members(value.lower())


def _members(members: type[_Member]) -> Callable[[str], frozenset[_Member]]:
    return lambda value: frozenset(
        members(item.strip().lower()) for item in value.split(",") if value.lower() != "none"
    )


def _names(members: type[enum.Enum]) -> str:
    return ", ".join(member.value for member in members)


def _list_of(members: type[enum.Enum]) -> str:
    return f"none, or a list of {_names(members)}"


def _length(value: str) -> int:
    length = int(value)
    if length < 1:
        raise ValueError(value)
    return length


def _milliseconds(value: str) -> float:
    milliseconds = float(value)
    if not 0 <= milliseconds < math.inf:
        raise ValueError(value)
    return milliseconds


def _nestable(mode: Mode, min_duration_ms: float) -> float:
    """
    Return the least duration that the mode allows: a span made afterwards cannot be the parent of the driver's.
    """
    if mode is Mode.BOTH and min_duration_ms:
        _logger.warning(
            "%s=%g is ignored with %s=both, where the engine's spans begin before it is known how long they take; "
            "use auto, engine or driver",
            OTEL_ASYNC_SQLA_MIN_DURATION_MS,
            min_duration_ms,
            OTEL_ASYNC_SQLA_MODE,
        )
        return 0
    return min_duration_ms


def _boolean(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(value)
    return value.lower() == "true"


def _pattern(value: str) -> re.Pattern[str]:
    try:
        return re.compile(value, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(value) from error


def _attribute_names(opt_in: str) -> AttributeNames:
    """
    Read OpenTelemetry's own list, in which words of other signals stand too; `database/dup` wins.
    """
    words = {word.strip().lower() for word in opt_in.split(",")}
    if AttributeNames.DUP.value in words:
        return AttributeNames.DUP
    return AttributeNames.STABLE if AttributeNames.STABLE.value in words else AttributeNames.OLD

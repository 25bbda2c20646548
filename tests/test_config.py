from __future__ import annotations

import re

import pytest

from otel_async_sqla_agent import environment_variables
from otel_async_sqla_agent._config import AttributeNames, Capture, Config, Mode, QueryText, SpanType


def test_defaults() -> None:
    """
    Without a variable, and with empty ones, the defaults hold.
    """
    empty = {name: " " for name in vars(environment_variables) if name.startswith("OTEL_")}
    assert Config() == Config.from_env({}) == Config.from_env(empty)


def test_every_variable() -> None:
    """
    Every variable is read, in any case and with blanks around list items.
    """
    assert Config(
        mode=Mode.DRIVER,
        spans=frozenset({SpanType.CONNECT, SpanType.TRANSACTION}),
        query_text=QueryText.MASKED,
        query_max_length=100,
        capture=frozenset({Capture.PARAMETERS, Capture.ROWS}),
        min_duration_ms=2.5,
        require_parent=True,
        exclude=re.compile("pg_catalog", re.IGNORECASE),
        metrics=False,
        flush_on_exit=False,
        attribute_names=AttributeNames.DUP,
    ) == Config.from_env(
        {
            "OTEL_ASYNC_SQLA_MODE": "Driver",
            "OTEL_ASYNC_SQLA_SPANS": " connect, TRANSACTION ",
            "OTEL_ASYNC_SQLA_QUERY_TEXT": "MASKED",
            "OTEL_ASYNC_SQLA_QUERY_MAX_LENGTH": "100",
            "OTEL_ASYNC_SQLA_CAPTURE": "rows, Parameters",
            "OTEL_ASYNC_SQLA_MIN_DURATION_MS": "2.5",
            "OTEL_ASYNC_SQLA_METRICS": "False",
            "OTEL_ASYNC_SQLA_FLUSH_ON_EXIT": "FALSE",
            "OTEL_ASYNC_SQLA_REQUIRE_PARENT": "TRUE",
            "OTEL_ASYNC_SQLA_EXCLUDE": "pg_catalog",
            "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database,database/dup",
        }
    )


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        pytest.param("MODE", "booth", "auto, engine, driver, both, off", id="mode"),
        pytest.param("SPANS", "statement,commit", "none, or a list of statement, connect, transaction", id="spans"),
        pytest.param("QUERY_TEXT", "yes", "auto, masked, raw, off", id="query-text"),
        pytest.param("QUERY_MAX_LENGTH", "2k", "a whole number from 1", id="length"),
        pytest.param("QUERY_MAX_LENGTH", "0", "a whole number from 1", id="no-length"),
        pytest.param("CAPTURE", "values", "none, or a list of parameters, rows", id="capture"),
        pytest.param("MIN_DURATION_MS", "nan", "a number of milliseconds", id="no-number"),
        pytest.param("MIN_DURATION_MS", "-1", "a number of milliseconds", id="negative"),
        pytest.param("METRICS", "on", "true, false", id="metrics"),
        pytest.param("FLUSH_ON_EXIT", "0", "true, false", id="flush"),
        pytest.param("REQUIRE_PARENT", "1", "true, false", id="boolean"),
        pytest.param("EXCLUDE", "(pg_", "a regular expression", id="regular-expression"),
        pytest.param("EXCLUDE", "a{99999999999999999999}", "a regular expression", id="too-many-repetitions"),
        pytest.param("EXCLUDE", "(" * 3000 + ")" * 3000, "a regular expression", id="too-deep"),
        pytest.param("SPANS", ",", "none, or a list of statement, connect, transaction", id="empty-list"),
    ],
)
def test_bad_value(variable: str, value: str, accepted: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    A bad value warns once, with variable, value and what is accepted, and the default applies.
    """
    name = f"OTEL_ASYNC_SQLA_{variable}"
    assert Config() == Config.from_env({name: value})
    assert [f"{name}={value!r} is not valid and is ignored; accepted: {accepted}"] == caplog.messages


def test_least_duration_where_spans_nest(caplog: pytest.LogCaptureFixture) -> None:
    """
    In mode `both` a least duration is ignored, and the warning names both variables.
    """
    config = Config.from_env({"OTEL_ASYNC_SQLA_MODE": "both", "OTEL_ASYNC_SQLA_MIN_DURATION_MS": "5"})
    assert (Mode.BOTH, 0) == (config.mode, config.min_duration_ms)
    assert [
        "OTEL_ASYNC_SQLA_MIN_DURATION_MS=5 is ignored with OTEL_ASYNC_SQLA_MODE=both, where the engine's spans begin "
        "before it is known how long they take; use auto, engine or driver"
    ] == caplog.messages

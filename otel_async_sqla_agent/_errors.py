"""
Tell what a span says of an exception, without any value that the exception carries.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from opentelemetry.semconv.attributes.db_attributes import DB_RESPONSE_STATUS_CODE
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.exception_attributes import EXCEPTION_MESSAGE, EXCEPTION_TYPE
from opentelemetry.trace import Span, Status, StatusCode

# Values stand in quotes (PostgreSQL: `invalid input syntax for type integer: "abc"`) or are numbers. Servers do not
# escape a quote inside a value (MySQL: `Duplicate entry 'it's' for key 'x'`), so all from the first quote to the
# last is masked. Servers that speak other languages than English have other quotes. That of `doesn't` is none.
_QUOTE = "(?:(?!(?<=n)'t\\b)['\"`«»‹›„“”‟‚‘’‛「」])"
_QUOTED_OR_NUMBER = re.compile(rf"{_QUOTE}(?:.*{_QUOTE}|.*)|(?<![\w.])[+-]?\d[\w.]*")
# After a colon a message is kept only while it is names (SQLite: `UNIQUE constraint failed: users.email`):
# asyncpg puts the repr of a parameter there.
_NAMES = re.compile(r"[\w.]+(?:, [\w.]+)*")
# Raised by the application's own SQL: the message is free text. PostgreSQL's languages can give it any code, but the
# server tells the source file.
_RAISED_BY_SQL = frozenset({"P0001", "P0004", "1811"})
_LANGUAGES = re.compile(r"pl(?:_|py|perl|tcl|v8)")
# What MySQL and MariaDB say themselves: SIGNAL can give any text any number.
_MYSQLS_OWN = re.compile(
    r"(?:Access denied for user|Can't connect to MySQL server on|Can't DROP|Check constraint|Column"
    r"|Data (?:too long|truncated) for column|Duplicate (?:column name|entry|key name)|Field|Incorrect [\w ]+ value:"
    r"|Out of range value for column|Table|Truncated incorrect [\w ]+ value:|Unknown (?:column|database|table)) '"
    r"|CONSTRAINT `"
    r"|Cannot (?:add or update a child|delete or update a parent) row|Column count doesn't match value count"
    r"|Deadlock found when trying to get lock|Lock wait timeout exceeded|Lost connection to MySQL server"
    r"|MySQL server has gone away|Query execution was interrupted|Subquery returns more than 1 row"
    r"|Too many connections|You have an error in your SQL syntax"
)
# What SQLite says itself: Python 3.10 does not tell the code by which RAISE is known.
_SQLITES_OWN = re.compile(r"[\w ]+ constraint failed|no such |near |unable to open |database |incomplete input")
# An application's own exception (in a `creator`, a listener) may say anything.
_DRIVERS = frozenset({"aiomysql", "aiosqlite", "asyncmy", "asyncpg", "psycopg", "psycopg_pool", "pymysql", "sqlite3"})


class ErrorFacts(NamedTuple):
    """
    What a span says of an exception.
    """

    type: str
    """
    The exception's full class name, the driver's own where SQLAlchemy wrapped it.
    """

    message: str
    """
    The masked first line; empty for a cancellation.
    """

    status_code: str | None
    """
    SQLSTATE, or the vendor's or SQLite's number.
    """


def error_facts(error: BaseException) -> ErrorFacts | None:
    """
    Read an exception.

    Returns:
        None where nothing failed: a coroutine or greenlet was closed by its owner.
    """
    if isinstance(error, GeneratorExit) or type(error).__name__ == "GreenletExit":
        return None
    original = _original(error)
    kind = type(original)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    code = _status_code(original)
    return ErrorFacts(name, _message(original, code), code)


def record_error(span: Span, facts: ErrorFacts) -> None:
    """
    Write the facts on a span: status, attributes and one `exception` event without a stack trace.
    """
    span.set_attributes(error_attributes(facts))
    span.set_status(Status(StatusCode.ERROR, facts.message or None))
    if facts.message:
        span.add_event("exception", {EXCEPTION_TYPE: facts.type, EXCEPTION_MESSAGE: facts.message})


def error_attributes(facts: ErrorFacts) -> dict[str, str]:
    """
    Return the attributes of an error that has low cardinality, for spans and metrics.
    """
    if facts.status_code is None:
        return {ERROR_TYPE: facts.type}
    return {ERROR_TYPE: facts.status_code, DB_RESPONSE_STATUS_CODE: facts.status_code}


def _message(error: BaseException, code: str | None) -> str:
    """
    Return the masked message where it is a driver's or the system's own; else nothing.
    """
    driver = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) and driver not in _DRIVERS:
        return error.strerror or ""
    return "" if driver not in _DRIVERS or _is_free_text(error, driver, code) else mask_message(error)


def _is_free_text(error: Any, driver: str, code: str | None) -> bool:
    """
    Tell whether the application's own SQL may have worded the message.
    """
    if driver == "sqlite3" and code is None:
        return _SQLITES_OWN.match(str(error)) is None
    if _has_vendor_number(error):
        return _MYSQLS_OWN.match(str(error.args[-1])) is None
    source = getattr(error, "server_source_filename", None) or getattr(
        getattr(error, "diag", None), "source_file", None
    )
    return code in _RAISED_BY_SQL or _LANGUAGES.match(source or "") is not None


def mask_message(error: BaseException) -> str:
    """
    Take the first line of an exception's message, with what may be a value as `?`.
    """
    text = error.args[1] if _has_vendor_number(error) and len(error.args) > 1 else str(error)
    line = str(text).partition("\n")[0]
    head, colon, tail = _QUOTED_OR_NUMBER.sub("?", line).partition(": ")
    return f"{head}{colon}{tail}" if _NAMES.fullmatch(tail) or tail == "?" else head


def _original(error: BaseException) -> BaseException:
    """
    Find the driver's exception: SQLAlchemy has it as `orig`, its asyncio adapters as the cause.
    """
    error = getattr(error, "orig", None) or error
    if type(error).__module__.startswith("sqlalchemy.") and error.__cause__ is not None:
        return error.__cause__
    return error


def _status_code(error: BaseException) -> str | None:
    if _has_vendor_number(error):
        return str(error.args[0])
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorcode", None)
    return None if code is None else str(code)


def _has_vendor_number(error: BaseException) -> bool:
    """
    Recognise the MySQL drivers' exceptions, whose first argument is the server's error number, or the client's.
    """
    return type(error).__module__.startswith(("pymysql.", "asyncmy.")) and bool(
        error.args and isinstance(error.args[0], int) and error.args[0]
    )

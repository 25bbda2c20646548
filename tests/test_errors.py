from __future__ import annotations

import asyncio
import sqlite3
from types import SimpleNamespace

import pymysql
import pytest
from greenlet import GreenletExit

from otel_async_sqla_agent._errors import ErrorFacts, error_facts, mask_message


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        pytest.param("UNIQUE constraint failed: users.email, users.name", None, id="names-stay"),
        pytest.param("canceling statement due to statement timeout", None, id="plain"),
        pytest.param('duplicate key value violates unique constraint "k"\nDETAIL:  Key (x)=(canary)',
                     "duplicate key value violates unique constraint ?", id="detail"),
        pytest.param('invalid input syntax for type integer: "canary"',
                     "invalid input syntax for type integer: ?", id="quoted-value"),
        pytest.param('near "canary": syntax error', "near ?", id="quotes-in-front"),
        pytest.param("Duplicate entry 'it's canary' for key 'email'", "Duplicate entry ?", id="quote-in-value"),
        pytest.param("invalid input for query argument $1: Canary(1) (expected str, got Canary)",
                     "invalid input for query argument $?", id="repr"),
        pytest.param("unterminated 'canary", "unterminated ?", id="open-quote"),
        pytest.param("value 4111111111111111 out of range", "value ? out of range", id="number"),
        pytest.param("ungültiger Wert »canary« für »YYYY«", "ungültiger Wert ?", id="other-quotes"),
        pytest.param("", "", id="empty"),
    ],
)  # fmt: skip
def test_message_without_values(message: str, masked: str | None) -> None:
    """
    What may be a value does not stand in the message.
    """
    assert (message if masked is None else masked) == mask_message(ValueError(message))


def test_cancellation() -> None:
    """
    The facts of a cancellation have no message.
    """
    assert ErrorFacts("asyncio.exceptions.CancelledError", "", None) == error_facts(asyncio.CancelledError("x"))


@pytest.mark.parametrize("error", [GeneratorExit(), GreenletExit()], ids=repr)
def test_closed_by_its_owner(error: BaseException) -> None:
    """
    A closed generator or greenlet is no error.
    """
    assert error_facts(error) is None


def test_driver_exception_below_sqlalchemys() -> None:
    """
    Type, message and code are the driver's, also below two layers of SQLAlchemy.
    """
    from sqlalchemy.exc import IntegrityError

    driver = type("UniqueViolationError", (Exception,), {"sqlstate": "23505", "__module__": "asyncpg.exceptions"})
    adapted = type("IntegrityError", (Exception,), {"__module__": "sqlalchemy.dialects.postgresql.asyncpg"})("x")
    adapted.__cause__ = driver("unique constraint")
    wrapped = IntegrityError("INSERT canary", {"canary": "canary"}, adapted)
    expected = ErrorFacts("asyncpg.exceptions.UniqueViolationError", "unique constraint", "23505")
    assert expected == error_facts(adapted) == error_facts(wrapped)


def mysql_error(*args: object) -> Exception:
    return type("IntegrityError", (Exception,), {"__module__": "pymysql.err", "sqlstate": "23000"})(*args)


@pytest.mark.parametrize(
    ("number", "message", "masked"),
    [
        pytest.param(1062, "Duplicate entry 'canary' for key 'email'", "Duplicate entry ?", id="quoted-value"),
        pytest.param(1146, "Table 'shop.tea' doesn't exist", "Table ? doesn't exist", id="apostrophe"),
        pytest.param(1366, "Incorrect integer value: 'canary' for column `t`.`id` at row 1", "Incorrect integer value",
                     id="value-after-colon"),
        pytest.param(2003, "Can't connect to MySQL server on 'canary'", "Can't connect to MySQL server on ?",
                     id="clients-own"),
        pytest.param(1213, "Deadlock found when trying to get lock; try restarting transaction", None, id="plain"),
        pytest.param(1644, "canary is locked", "", id="signal"),
        pytest.param(1062, "canary is locked", "", id="signal-with-another-number"),
    ],
)  # fmt: skip
def test_mysql(number: int, message: str, masked: str | None) -> None:
    """
    The MySQL drivers' number is the code, not the SQLSTATE; a message that SIGNAL may have worded is left out.
    """
    expected = ErrorFacts("pymysql.err.IntegrityError", message if masked is None else masked, str(number))
    assert expected == error_facts(mysql_error(number, message))


def test_mysql_without_number() -> None:
    """
    What a MySQL driver says of itself has no code.
    """
    facts = error_facts(pymysql.err.InterfaceError(0, "Not connected"))
    assert facts is not None
    assert facts.status_code is None


def postgresql_error(module: str, sqlstate: str, **attributes: object) -> Exception:
    return type("E", (Exception,), {"__module__": module, "sqlstate": sqlstate, **attributes})("canary is locked")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("cannot log in to vault with token canary"), id="applications-own"),
        pytest.param(postgresql_error("asyncpg.exceptions", "23514", server_source_filename="pl_exec.c"),
                     id="raise-using-errcode"),
        pytest.param(postgresql_error("psycopg.errors", "23514", diag=SimpleNamespace(source_file="plpy_elog.c")),
                     id="python-in-postgresql"),
        pytest.param(postgresql_error("asyncpg.exceptions", "P0004"), id="assert-without-source"),
        pytest.param(sqlite3.IntegrityError("customer canary is blocked"), id="sqlite-raise-without-code"),
    ],
)  # fmt: skip
def test_free_text(error: Exception) -> None:
    """
    A message that is neither the driver's nor the server's own wording is left out.
    """
    facts = error_facts(error)
    assert facts is not None
    assert "" == facts.message


def test_operating_systems_error() -> None:
    """
    A refused connection says so, without the address.
    """
    error = ConnectionRefusedError(111, "Connection refused", "canary")
    assert ErrorFacts("ConnectionRefusedError", "Connection refused", None) == error_facts(error)


def test_sqlite_code() -> None:
    """
    SQLite's extended code is the status code from Python 3.11 on.
    """
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.IntegrityError) as caught:
        connection.executescript("CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1), (1)")
    connection.close()
    facts = error_facts(caught.value)
    assert facts is not None
    assert facts.status_code == ("2067" if hasattr(caught.value, "sqlite_errorcode") else None)

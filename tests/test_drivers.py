from __future__ import annotations

import importlib
import inspect
from typing import Any
from unittest.mock import MagicMock

import pytest
from psycopg import sql

from otel_async_sqla_agent._bracket import CONNECT
from otel_async_sqla_agent._drivers import DRIVERS
from otel_async_sqla_agent._drivers_mysql import _CALLS
from otel_async_sqla_agent._drivers_postgresql import _psycopg_sql
from otel_async_sqla_agent._wraps import Wrap
from tests.templates import template


def _calls() -> list[Any]:
    """
    Return each row of the table that is a public method.
    """
    found = []
    for driver, row in DRIVERS.items():
        module = importlib.import_module(driver)
        wraps = [wrap for wrap in row.wraps(module) if wrap.kind != CONNECT and wrap.replace is None]
        if driver == "asyncmy":
            wraps += [Wrap(module.cursors.Cursor, name, read=read) for name, read in _CALLS.items()]
        public = [wrap for wrap in wraps if wrap.read is not None and not wrap.name.startswith("_")]
        found += [pytest.param(wrap, id=f"{driver}-{wrap.owner.__name__}.{wrap.name}") for wrap in public]
    return found


@pytest.mark.parametrize("wrap", _calls())
def test_arguments_by_name(wrap: Wrap) -> None:
    """
    A call is read whichever of its arguments the application gives by the driver's own names.
    """
    parameters = inspect.signature(getattr(wrap.owner, wrap.name)).parameters.values()
    by_name = [item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    read: Any = wrap.read
    read(MagicMock(), **{name: MagicMock() for name in by_name[1:]})


SECRET = "cAnArY"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        pytest.param(template(), "", id="nothing"),
        pytest.param(template("SELECT 1"), "SELECT 1", id="no value"),
        pytest.param(template((SECRET, "")), "?", id="nothing but a value"),
        pytest.param(template("SELECT ", (SECRET, ""), (2, "s"), ", ", (b"3", "b")), "SELECT ??, ?", id="values"),
        pytest.param(
            template("SELECT ", (SECRET, "l"), ", ", (sql.Literal(SECRET), "l")), "SELECT ?, ?", id="literals"
        ),
        pytest.param(template("SELECT ", ('a"b', "i")), 'SELECT "a""b"', id="name"),
        pytest.param(template("TABLE ", (sql.Identifier("a", "b"), "i")), 'TABLE "a"."b"', id="composed name"),
        pytest.param(template("SELECT ", (sql.SQL("now()"), "q")), "SELECT now()", id="composed"),
        pytest.param(
            template("SELECT * ", (template("FROM ", ("tea", "i"), " WHERE id = ", (SECRET, "")), "q"), " LIMIT 1"),
            'SELECT * FROM "tea" WHERE id = ? LIMIT 1',
            id="nested",
        ),
        # psycopg refuses these, and says why.
        pytest.param(template("SELECT ", (SECRET, "q")), "SELECT ?", id="a value as a query"),
        pytest.param(template("SELECT ", (object(), "i")), "SELECT ?", id="an object as a name"),
        pytest.param(template("SELECT ", (template(SECRET), "")), "SELECT ?", id="unmarked template"),
        pytest.param(template("SELECT ", (sql.Literal(object()), "q")), None, id="what cannot be written down"),
    ],
)
def test_template_strings(query: Any, text: str | None) -> None:
    """
    A template string shows its names and the queries in it, and no value.
    """
    assert text == _psycopg_sql(query, None)

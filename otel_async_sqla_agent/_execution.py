"""
Tell what SQLAlchemy's own objects know of an execution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._bracket import Bracket

if TYPE_CHECKING:
    from collections.abc import MutableSet

    from sqlalchemy.engine import Engine

    from ._bracket import BracketOwner

# `execution_options(otel_skip=True)`, on a statement, a connection or an engine.
SKIP_OPTION = "otel_skip"


def is_parameterised(parameters: Any, context: Any) -> bool:
    """
    Tell whether the values are apart from the text; `literal_execute` parameters are written into it.
    """
    if not parameters:
        return False
    compiled = getattr(context, "compiled", None)
    return not getattr(compiled, "literal_execute_params", None)


def is_skipped(context: Any) -> bool:
    """
    Tell whether the application wants no span of a statement: SQLAlchemy has put all its options together.
    """
    options: Any = getattr(context, "execution_options", None)
    return bool(options and options.get(SKIP_OPTION))


def silence_connects(sync_engine: Engine, owner: BracketOwner, skipping: MutableSet[Any]) -> bool:
    """
    Put a silent bracket around the connects of an engine that has the option itself: they don't know of it.

    Args:
        sync_engine: The engine, or a copy of it.
        owner: Whose calls make no span then.
        skipping: Gets the connections that are checked out.

    Returns:
        Whether it has been done, and is to be undone by `unsilence_connects`.
    """
    if not sync_engine.get_execution_options().get(SKIP_OPTION) or "raw_connection" in vars(sync_engine):
        return False
    original = sync_engine.raw_connection

    def raw_connection(*args: Any, **kwargs: Any) -> Any:
        bracket = Bracket(owner)
        try:
            connection = original(*args, **kwargs)
        finally:
            bracket.close()
            del bracket.owner  # as where any other bracket is closed
        skipping.add(connection)
        return connection

    sync_engine.raw_connection = raw_connection  # type: ignore[method-assign]
    return True


def note_option(connection: Any, options: Any, skipping: MutableSet[Any]) -> None:
    """
    Note whether the checked-out connection of a `Connection` is to make no spans, where that has just been said.
    """
    checked_out = connection._dbapi_connection  # None where it has been invalidated
    if SKIP_OPTION in options and checked_out is not None:
        (skipping.add if options[SKIP_OPTION] else skipping.discard)(checked_out)


def unsilence_connects(sync_engine: Engine) -> None:
    """
    Give an engine its method back, where no other tool has put its own over ours.
    """
    if getattr(vars(sync_engine).get("raw_connection"), "__module__", None) == __name__:
        del sync_engine.raw_connection


def known_rows(cursor: Any) -> int | None:
    """
    Return how many rows a cursor has fetched when it has executed; None where it fetches later, or has none to fetch.
    """
    if "_ss_" in type(cursor).__name__ or not cursor.description:  # a server-side cursor of any version
        return None
    rows: Any = getattr(cursor, "_rows", None)
    return len(rows) if hasattr(rows, "__len__") else None


def sends_nothing(connection: Any) -> bool:
    """
    Tell whether COMMIT or ROLLBACK stays in the driver: asyncpg, psycopg and SQLite without a transaction.
    """
    connection = getattr(connection, "dbapi_connection", connection)
    if hasattr(connection, "_transaction"):
        return connection._transaction is None
    driver_connection = getattr(connection, "_connection", None)
    if (pgconn := getattr(driver_connection, "pgconn", None)) is not None:
        return bool(pgconn.transaction_status == 0)  # idle, in libpq's words
    try:
        return getattr(driver_connection, "in_transaction", None) is False
    except Exception:  # noqa: BLE001 - aiosqlite raises from the property where the connection is closed
        return False

"""
Bracket the calls of one engine: the methods of its dialect, and its connects.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ._bracket import CONNECT, STATEMENT, TRANSACTION, Bracket, latest_bracket, open_bracket
from ._config import Capture, Mode, SpanType
from ._connections import EngineTarget
from ._errors import error_facts
from ._execution import is_parameterised, is_skipped, known_rows, note_option, sends_nothing
from ._pool import take_checkout
from ._server import connection_database, engine_database

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from sqlalchemy.engine import Dialect, Engine

    from ._connections import Connections
    from ._guard import Guard
    from ._pool import EnginePools
    from ._semconv import Database
    from ._statement import StatementCore, Target

_Call = Callable[..., Any]

_TRANSACTION_CALLS = {
    "do_commit": "COMMIT",
    "do_rollback": "ROLLBACK",
    "do_savepoint": "SAVEPOINT",
    "do_rollback_to_savepoint": "ROLLBACK TO SAVEPOINT",
    "do_release_savepoint": "RELEASE SAVEPOINT",
    "do_prepare_twophase": "PREPARE TRANSACTION",
    "do_recover_twophase": "RECOVER PREPARED",
}
_TWO_PHASE_ENDS = {"do_commit_twophase": "COMMIT", "do_rollback_twophase": "ROLLBACK"}
_SILENT_CALLS = (
    "do_ping",
    "do_close",
    "do_terminate",
    "get_isolation_level",
    "set_isolation_level",
    "set_readonly",
    "set_deferrable",
)


class EngineState:
    """
    What is kept for one engine: where its spans go, and which methods of its dialect are bracketed.
    """

    target: Target
    """
    Where its spans go, and what all of them say.
    """

    def __init__(
        self,
        core: StatementCore,
        guard: Guard,
        pools: EnginePools,
        connections: Connections,
        sync_engine: Engine,
        tracer: Tracer,
        mode: Mode,
    ) -> None:
        self.tracer = tracer
        self.pools = pools
        self.skipping: weakref.WeakSet[Any] = weakref.WeakSet()
        """
        The connections out of the pool that make no spans, not even of COMMIT, which knows nothing of options.
        """
        self._connections = connections
        self._owner = EngineTarget()
        self._is_drivers, self._is_both = mode is Mode.DRIVER, mode is Mode.BOTH
        self._counts_rows = Capture.ROWS in core.config.capture and not self._is_drivers
        self._core = core
        self.guard = guard
        self._url = sync_engine.url
        self._found: Database | None = None
        self._wrapped: dict[str, tuple[_Call, _Call | None]] = {}
        database = self.refresh(sync_engine.dialect)
        pools.guard.run(pools.open, sync_engine.pool, database.pool_name)

    def refresh(self, dialect: Dialect, driver_connection: object = None) -> Database:
        """
        Read the database's facts again: MariaDB is told from MySQL only by the first connection.
        """
        if driver_connection is not None:
            self._found = connection_database(driver_connection)
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        database = engine_database(name, self._url, self._found)
        self.target = self.pools.target = self._owner.target = self._core.target(self.tracer, database)
        return database

    def wrap(self, dialect: Dialect) -> None:
        """
        Put brackets around the dialect's methods, as attributes of the instance.
        """
        begins: dict[str, _Call] = {
            "do_execute": self._begin_execute,
            "do_executemany": self._begin_executemany,
            "do_execute_no_params": self._begin_execute_no_params,
            **{name: functools.partial(self._begin_transaction, span_name)
               for name, span_name in _TRANSACTION_CALLS.items()},
            **{name: functools.partial(self._end_two_phases, span_name)
               for name, span_name in _TWO_PHASE_ENDS.items()},
            "do_begin_twophase": self._begin_two_phases,
            **dict.fromkeys(_SILENT_CALLS, _begin_silently),
        }  # fmt: skip
        for name, begin in begins.items():
            bracket = self._bracket_if_begun if name in ("do_commit", "do_rollback") else self._bracket
            if hasattr(dialect, name):  # SQLAlchemy 1.4 got some of them late
                self._replace(dialect, name, functools.partial(bracket, begin))
        self._replace(dialect, "set_connection_execution_options", self._following)
        if hasattr(dialect, "_deliver_insertmanyvalues_batches"):  # SQLAlchemy 2.0
            self._replace(dialect, "_deliver_insertmanyvalues_batches", self._bracket_batches)

    def unwrap(self, dialect: Dialect) -> None:
        """
        Give the dialect its methods back, where no other tool has put its own over ours.
        """
        for name, (wrapper, previous) in self._wrapped.items():
            if dialect.__dict__.get(name) is not wrapper:
                continue
            if previous is None:
                delattr(dialect, name)
            else:
                setattr(dialect, name, previous)

    def connect(self, dialect: Dialect, record: Any, connect: _Call) -> Any:
        """
        Make a real connection: all of it is one span, which is not made current.
        """
        self.guard.run(self._core.before_connect)
        started = perf_counter()
        result = self._bracket(self._begin_connect, connect)()
        self.pools.guard.run(self.pools.created, perf_counter() - started)
        self.guard.run(self._connected, dialect, record)
        return result

    def _connected(self, dialect: Dialect, record: Any) -> None:
        self._connections.add(record.driver_connection, self._owner)
        self.refresh(dialect, record.driver_connection)

    def _replace(self, dialect: Dialect, name: str, make: Callable[[_Call], _Call]) -> None:
        original = getattr(dialect, name)
        wrapper = functools.wraps(original)(make(original))
        self._wrapped[name] = (wrapper, dialect.__dict__.get(name))
        setattr(dialect, name, wrapper)

    def _bracket(self, begin: _Call, original: _Call) -> _Call:
        """
        Return the method in a bracket; `begin` gets the bracket and the call's own arguments.
        """
        guard, close = self.guard, self._core.close

        def call(*args: Any, **kwargs: Any) -> Any:
            outer = latest_bracket()
            if outer is not None and outer.active and outer.encloses(self, args):
                return self._pass_through(outer, original, args, kwargs)
            if not guard.active:
                return original(*args, **kwargs)
            bracket = Bracket(self)
            try:
                try:  # as the guard would do it: each statement comes this way
                    begin(bracket, *args, **kwargs)
                except Exception as error:  # noqa: BLE001 - ours
                    guard.failed(error)
                result = original(*args, **kwargs)
            except BaseException as error:
                close(bracket, error)
                raise
            close(bracket, None)
            return result

        return call

    def _bracket_if_begun(self, begin: _Call, original: _Call) -> _Call:
        """
        Return COMMIT or ROLLBACK in a bracket, unless SQLAlchemy's adapter for asyncpg has begun no transaction.

        It does nothing then, and each return to a pool asks it to.
        """
        bracketed = self._bracket(begin, original)

        def call(connection: Any, *args: Any, **kwargs: Any) -> Any:
            adapter = getattr(connection, "dbapi_connection", connection)  # the pool's proxy would take long
            begun = getattr(adapter, "_transaction", adapter) is not None
            return (bracketed if begun else original)(connection, *args, **kwargs)

        return call

    def _following(self, original: _Call) -> _Call:
        """
        Return what SQLAlchemy calls when a connection gets options, such that we hear of it.
        """

        def call(connection: Any, options: Any) -> None:
            original(connection, options)
            self.guard.run(note_option, connection, options, self.skipping)

        return call

    def _bracket_batches(self, original: _Call) -> _Call:
        """
        Return the generator of insertmanyvalues in a bracket that stays open while SQLAlchemy executes the batches.
        """

        def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
            outer = open_bracket()
            if not self.guard.active or (outer is not None and outer.encloses(self, args)):
                yield from original(*args, **kwargs)
                return
            bracket = Bracket(self)
            try:
                self.guard.run(self._begin_batches, bracket, *args, **kwargs)
                yield from original(*args, **kwargs)
            except BaseException as error:
                self._core.close(bracket, error)
                raise
            self._core.close(bracket, None)

        return call

    def _pass_through(self, outer: Bracket, original: _Call, args: Any, kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            # A batch of insertmanyvalues fails outside of the generator that is its bracket.
            self.guard.run(_note_error, outer, error)
            raise

    def _begin_execute(
        self, bracket: Bracket, cursor: Any, statement: Any, parameters: Any, context: Any = None, batch_size: int = 0
    ) -> None:
        parameterised, more, skip = is_parameterised(parameters, context), take_checkout(context), is_skipped(context)
        bracket.parameterised = parameterised
        if self._is_drivers and not skip:
            bracket.more = more
            bracket.nests = STATEMENT | TRANSACTION
            return
        if self._counts_rows and not batch_size:
            bracket.count_rows = functools.partial(known_rows, cursor)
        self._core.start_statement(
            bracket, self.target, statement, parameterised, batch_size, parameters, more, skip=skip
        )
        if self._is_both and bracket.span is not None:
            bracket.nests = STATEMENT | TRANSACTION

    def _begin_executemany(
        self, bracket: Bracket, cursor: Any, statement: Any, parameters: Any, context: Any = None
    ) -> None:
        self._begin_execute(bracket, cursor, statement, parameters, context, len(parameters))

    def _begin_execute_no_params(self, bracket: Bracket, cursor: Any, statement: Any, context: Any = None) -> None:
        self._begin_execute(bracket, cursor, statement, None, context)

    def _begin_batches(self, bracket: Bracket, *args: Any) -> None:
        # (…, statement, parameters, generic_setinputsizes, context): newer versions have more in front.
        statement, parameters, _, context = args[-4:]
        bracket.batch = context
        self._begin_executemany(bracket, None, statement, parameters, context)

    def _begin_transaction(self, name: str, bracket: Bracket, connection: Any, *_args: Any, **_kwargs: Any) -> None:
        if name not in ("COMMIT", "ROLLBACK") or not sends_nothing(connection):
            self._start_transaction(bracket, connection, name)

    def _begin_two_phases(self, bracket: Bracket, connection: Any, *_args: Any, **_kwargs: Any) -> None:
        # asyncpg's adapter sends BEGIN with the first statement. (What `connection.connection` is would tell as well,
        # but to ask for it may connect.)
        if connection.dialect.driver != "asyncpg":
            self._start_transaction(bracket, connection, "BEGIN")

    def _end_two_phases(
        self, name: str, bracket: Bracket, connection: Any, _xid: Any, is_prepared: bool = True, **_kwargs: Any
    ) -> None:
        self._start_transaction(bracket, connection, f"{name} PREPARED" if is_prepared else name)

    def _start_transaction(self, bracket: Bracket, connection: Any, name: str) -> None:
        # Some calls get SQLAlchemy's `Connection`, the others what that has got from the pool.
        if getattr(connection, "_dbapi_connection", connection) not in self.skipping:
            self._core.start_transaction(bracket, self.target, name)

    def _begin_connect(self, bracket: Bracket) -> None:
        if self._is_drivers:
            bracket.nests = CONNECT
        elif SpanType.CONNECT in self._core.config.spans:
            self._core.start_call(bracket, self.target, "connect")


def _note_error(bracket: Bracket, error: BaseException) -> None:
    bracket.error = error_facts(error)


def _begin_silently(_bracket: Bracket, *_args: Any, **_kwargs: Any) -> None:
    """
    Make no span; the bracket keeps the driver's from being made.
    """

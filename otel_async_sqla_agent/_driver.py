"""
The driver layer: each call of an async driver is a bracket, as the table of `_drivers` says.

The drivers' functions are replaced by plain functions on their classes: contrib's `unwrap()` strips the outermost wrapt
proxy, so one of ours would keep contrib's alive.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._bracket import CONNECT, TRANSACTION, Bracket
from ._calls import bracketed
from ._config import Mode, SpanType
from ._control import CONTROLS, LONGEST_CONTROL
from ._drivers import DRIVERS
from ._first_connect import CLASS_METHODS, tell_unknown
from ._semconv import Database
from ._server import connection_database
from ._wraps import Driver, Wrap

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from opentelemetry.trace import Tracer
    from sqlalchemy.engine import Dialect

    from ._connections import Connections
    from ._guard import Guard
    from ._statement import StatementCore, Target

    Function = Callable[..., Any]

_CONTRIB = "opentelemetry.instrumentation."


@dataclass(frozen=True, slots=True)  # faster to read from than a tuple with names
class DirectConnection:
    """
    A connection that the application has opened itself.
    """

    target: Target


class DriverLayer:
    """
    Instrument drivers, and undo it.

    Args:
        core: What makes the spans.
        guard: Where failures of ours go.
        connections: Whose connection is whose.
    """

    def __init__(self, core: StatementCore, guard: Guard, connections: Connections) -> None:
        self.core = core
        self.guard = guard
        # In mode `engine` the functions do no more than keep contrib's from engines.
        guard.active = core.config.mode is not Mode.ENGINE
        self.connections = connections
        self._drivers: dict[str, InstrumentedDriver] = {}

    def covers(self, dialect: Dialect) -> bool:
        """
        Tell whether the calls of an engine's driver make spans.
        """
        driver = self._drivers.get(dialect.driver)
        return driver is not None and driver.makes_spans

    def instrument(self, module: ModuleType, *, contrib: bool, tracer: Tracer) -> None:
        """
        Instrument a driver that has been imported.

        Args:
            module: The driver.
            contrib: Whether contrib's functions are there.
            tracer: Where spans of direct use go.
        """
        name = module.__name__
        driver = self._drivers.setdefault(name, InstrumentedDriver(self, DRIVERS[name], module))
        driver.wrap(contrib, tracer)

    def step_back(self, name: str) -> None:
        """
        Give a driver's functions back for the moment in which contrib puts its own there, or takes them away.
        """
        if name in self._drivers:
            self._drivers[name].unwrap()

    def uninstrument(self) -> None:
        """
        Give every driver the identical functions back.
        """
        # What another tool has wrapped in the meantime passes through from now on.
        self.guard.active = False
        for driver in self._drivers.values():
            driver.unwrap()
        self._drivers.clear()


class InstrumentedDriver:
    """
    One driver of this process.
    """

    def __init__(self, layer: DriverLayer, driver: Driver, module: ModuleType) -> None:
        self.guard = layer.guard
        self.end = layer.core.close
        self._core = layer.core
        self._connections = layer.connections
        self._owners = layer.connections.owners
        self._direct = layer.core.config.mode is not Mode.ENGINE
        self._driver = driver
        self._module = module
        self._undo: list[Callable[[], None]] = []

    @property
    def makes_spans(self) -> bool:
        """
        Tell whether the driver's calls make spans: not in mode `engine`, nor where the driver is not known.
        """
        return self._direct and bool(self._undo)

    def wrap(self, contrib: bool, tracer: Tracer) -> None:
        """
        Replace the driver's functions; in mode `engine` only to keep contrib's from engines.

        Args:
            contrib: Whether contrib's are there.
            tracer: Where spans of direct use go.
        """
        self._tracer = tracer
        if self._undo or not (self._direct or contrib):
            return
        try:
            for wrap in self._driver.wraps(self._module):
                self._replace(wrap)
        except AttributeError as error:
            self.unwrap()
            tell_unknown(self._module, error)

    def unwrap(self) -> None:
        """
        Give the functions back, where no other tool has put its own over ours.
        """
        while self._undo:
            self._undo.pop()()

    def begin(self, bracket: Bracket, outer: Bracket | None, wrap: Wrap, args: Any, kwargs: Any) -> None:
        """
        Start the span of a call, if it gets one. Of one piece: most statements come through here.
        """
        read: Function = wrap.read  # type: ignore[assignment] # what has none is not bracketed
        try:
            call = read(*args, **kwargs)
        except TypeError:  # wrong arguments: the driver says so itself
            return
        if call is None:
            return
        if wrap.kind == CONNECT:
            self._begin_connect(bracket, outer, call)
            return
        connection, query, parameterised, batch_size, is_preparation, values = call
        if connection is None:  # of a cursor that is closed
            return
        text = query if isinstance(query, str) else _text(query)
        control = CONTROLS[text] if len(text) <= LONGEST_CONTROL else None
        if control is None and wrap.kind == TRANSACTION:
            return  # psycopg fetches from its server-side cursors there, too
        owned = self._owners.get(id(connection))
        # An engine's connection is marked when its connect has come to an end.
        target = owned[0].target if owned is not None else (outer and outer.target) or self._learn_target(connection)
        if control is not None:
            if control:
                self._core.start_transaction(bracket, target, control)
            return
        bracket.nests = TRANSACTION  # psycopg sends BEGIN inside of the first statement's call
        more = None
        if outer is not None:
            # The engine knows more: values may have been written into the text, and a preparation has none yet.
            parameterised = outer.parameterised is True and (parameterised or is_preparation)
            more = outer.more
            if not is_preparation:
                outer.more = None
        self._core.start_statement(
            bracket,
            target,
            text,
            parameterised,
            batch_size,
            values,
            more,
            measure=outer is None or outer.span is None,
            only_if_it_fails=is_preparation,
        )

    def connected(self, bracket: Bracket, outer: Bracket | None, connection: Any) -> None:
        """
        Learn where a connection leads to that the application has opened; the engine marks its own.
        """
        if outer is None:
            self.guard.run(self._learn, bracket, connection)

    def leaves(self, wrap: Wrap, args: Any) -> bool:
        """
        Tell whether a call that no bracket encloses is left to contrib: in mode `engine`, unless an engine owns it.
        """
        if self._direct:
            return False
        owner = None if wrap.kind == CONNECT else self._connections.owner(wrap.connection(args[0]))
        return owner is None or isinstance(owner, DirectConnection)

    def _replace(self, wrap: Wrap) -> None:
        owner, name = wrap.owner, wrap.name
        # An inherited function is replaced for this class alone: the driver's sync side has the same one.
        original, previous = inspect.getattr_static(owner, name), vars(owner).get(name)
        bare = _without_contrib(original)
        if bare is original and wrap.read is None and wrap.replace is None:
            return
        replacement = self._replacement(wrap, original, bare)
        setattr(owner, name, replacement)

        def undo() -> None:
            if vars(owner).get(name) is replacement:
                delattr(owner, name) if previous is None else setattr(owner, name, previous)

        self._undo.append(undo)

    def _replacement(self, wrap: Wrap, original: Any, bare: Any) -> Any:
        function: Function = getattr(bare, "__func__", bare)
        if wrap.replace is not None:
            return wrap.replace(function, lambda wrap, function: bracketed(self, wrap, function, function))
        beneath = function if bare is original else _unbound(original)
        if wrap.bare is not None:
            function = wrap.bare(function)
        replacement = bracketed(self, wrap, function, beneath)
        return classmethod(replacement) if isinstance(bare, CLASS_METHODS) else replacement

    def _begin_connect(self, bracket: Bracket, outer: Bracket | None, database: Database) -> None:
        if SpanType.CONNECT in self._core.config.spans:
            target = None if outer is None else outer.target
            self._core.start_call(bracket, target or self._core.target(self._tracer, database), "connect")

    def _learn(self, bracket: Bracket, connection: Any) -> None:
        target = self._learn_target(connection)
        if bracket.span is not None:
            bracket.span.set_attributes(target.attributes)

    def _learn_target(self, connection: Any) -> Target:
        database = connection_database(connection) or Database(self._driver.dialect)
        target = self._core.target(self._tracer, database)
        self._connections.add(connection, DirectConnection(target))
        return target


def _text(query: Any) -> str:
    """
    Read SQL that is no text; what is not bytes either the driver refuses.
    """
    return query.decode(errors="replace") if isinstance(query, (bytes, bytearray)) else ""


def _without_contrib(function: Any) -> Any:
    """
    Return the driver's own function where contrib's wrapper, or several of them, stand there.
    """
    while str(getattr(getattr(function, "_self_wrapper", None), "__module__", "")).startswith(_CONTRIB):
        function = function.__wrapped__
    return function


def _unbound(wrapper: Any) -> Function:
    """
    Return a wrapper of a class as a function that takes the instance, or the class, first.
    """

    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        instance, owner_class = (None, owner) if isinstance(owner, type) else (owner, type(owner))
        return wrapper.__get__(instance, owner_class)(*args, **kwargs)

    return call

"""
Put a bracket around a driver's function, whatever kind of function it is, and leave its kind as it was.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ._bracket import CONNECT, Bracket, latest_bracket, open_bracket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

    from ._guard import Guard
    from ._wraps import Wrap

    Function = Callable[..., Any]
    # Chooses the function to call where a call passes.
    Passing = Callable[[Bracket | None, Any], Function]


class Caller(Protocol):
    """
    What decides about a driver's calls.
    """

    guard: Guard
    """
    Of its layer. While that is off, calls make no spans.
    """

    def leaves(self, wrap: Wrap, args: Any) -> bool:
        """
        Tell whether a call that no bracket encloses is left to contrib.
        """

    def begin(self, bracket: Bracket, outer: Bracket | None, wrap: Wrap, args: Any, kwargs: Any) -> None:
        """
        Start the span of a call.
        """

    def connected(self, bracket: Bracket, outer: Bracket | None, connection: Any) -> None:
        """
        Hear of a connection that has been made; never raises an `Exception`.
        """

    def end(self, bracket: Bracket, error: BaseException | None) -> None:
        """
        End a call; never raises an `Exception`.
        """


class _Open:
    """
    The bracket around one call, as a context manager.
    """

    __slots__ = ("_arguments", "_bracket", "_caller")

    def __init__(self, caller: Caller, *arguments: Any) -> None:
        self._caller = caller
        self._arguments = arguments

    def __enter__(self) -> Bracket:
        self._bracket = bracket = Bracket(self._caller)
        try:
            self._caller.guard.run(self._caller.begin, bracket, *self._arguments)
        except BaseException as error:
            self._caller.end(bracket, error)
            raise
        return bracket

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._caller.end(self._bracket, error)


def bracketed(caller: Caller, wrap: Wrap, function: Function, beneath: Function) -> Function:
    """
    Return a function of the same kind that brackets each call.

    Args:
        caller: What decides about the calls.
        wrap: The function's row in the table of its driver.
        function: The driver's own.
        beneath: What stands there now: the same, or contrib's.
    """

    def passing(outer: Bracket | None, args: Any) -> Function:
        if beneath is function or outer is not None or not caller.leaves(wrap, args):
            return function
        return beneath

    if wrap.read is None:
        call: Function = lambda *args, **kwargs: passing(open_bracket(), args)(*args, **kwargs)  # noqa: E731
    elif wrap.kind == CONNECT:
        call = _connect(caller, wrap, function, passing)
    elif inspect.iscoroutinefunction(function) and not _is_private(wrap.name):
        call = _coroutine(caller, wrap, function, passing)
    elif inspect.isasyncgenfunction(function):
        call = _async_generator(caller, wrap, function, passing)
    elif inspect.isgeneratorfunction(function):
        call = _generator(caller, wrap, function, passing)
    elif inspect.isasyncgenfunction(inspect.unwrap(function)):
        call = _context_manager(caller, wrap, function, passing)
    else:
        call = _awaitable(caller, wrap, function, passing)
    return functools.wraps(function)(call)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _passes(caller: Caller, wrap: Wrap, outer: Bracket | None) -> bool:
    """
    Tell whether a call makes no span and opens no bracket.
    """
    return not caller.guard.active or (outer is not None and not outer.nests & wrap.kind)


def _connect(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    async def call(*args: Any, **kwargs: Any) -> Any:
        outer = open_bracket()
        if _passes(caller, wrap, outer):
            return await passing(outer, args)(*args, **kwargs)
        with _Open(caller, outer, wrap, args, kwargs) as bracket:
            result = await function(*args, **kwargs)
            # Some drivers' functions return the connection, others are methods of it.
            caller.connected(bracket, outer, args[0] if result is None else result)
            return result

    return call


def _coroutine(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    # As `_passes` and `_Open` do it, without their calls: most statements come this way.
    guard, begin, end, kind = caller.guard, caller.begin, caller.end, wrap.kind

    async def call(*args: Any, **kwargs: Any) -> Any:
        outer = latest_bracket()
        if outer is not None and not outer.active:
            outer = None
        if not guard.active or (outer is not None and not outer.nests & kind):
            return await passing(outer, args)(*args, **kwargs)
        bracket = Bracket(caller)
        try:
            try:
                begin(bracket, outer, wrap, args, kwargs)
            except Exception as error:  # noqa: BLE001 - ours
                guard.failed(error)
            result = await function(*args, **kwargs)
        except BaseException as error:
            end(bracket, error)
            raise
        end(bracket, None)
        return result

    return call


def _awaitable(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    """
    Bracket what returns something to await, and a private coroutine function: nobody asks for its kind, and where it
    passes, as it mostly does, it costs no coroutine more.
    """
    kind, is_coroutine_function = wrap.kind, inspect.iscoroutinefunction(function)

    @functools.wraps(function)
    async def bracket(outer: Bracket | None, args: Any, kwargs: Any) -> Any:
        with _Open(caller, outer, wrap, args, kwargs):
            return await function(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        outer = latest_bracket()
        if outer is not None and outer.active and not outer.nests & kind:
            return function(*args, **kwargs)  # within another call, as most of them are: no frame more than this
        outer = open_bracket()
        if _passes(caller, wrap, outer):
            return passing(outer, args)(*args, **kwargs)
        if not is_coroutine_function:
            # What the driver raises before it returns something to await is raised here, too. Not this coroutine is
            # awaited, but one of the bracket's own: Python complains of any that has never been.
            function(*args, **kwargs).close()
        return bracket(outer, args, kwargs)

    return call


def _async_generator(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    async def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        outer = open_bracket()
        passes = _passes(caller, wrap, outer)
        async with aclosing((passing(outer, args) if passes else function)(*args, **kwargs)) as items:
            if not passes:
                # Up to the first item, not longer: what runs between two items is the application's.
                with _Open(caller, outer, wrap, args, kwargs):
                    try:
                        first = await anext(items)
                    except StopAsyncIteration:
                        return
                yield first
            async for item in items:
                yield item

    return call


def _generator(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        outer = open_bracket()
        if _passes(caller, wrap, outer):
            return (yield from passing(outer, args)(*args, **kwargs))
        with _Open(caller, outer, wrap, args, kwargs):
            return (yield from function(*args, **kwargs))

    return call


def _context_manager(caller: Caller, wrap: Wrap, function: Function, passing: Passing) -> Function:
    @asynccontextmanager
    async def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        outer = open_bracket()
        if _passes(caller, wrap, outer):
            async with passing(outer, args)(*args, **kwargs) as value:
                yield value
            return
        with _Open(caller, outer, wrap, args, kwargs) as bracket:
            async with function(*args, **kwargs) as value:
                bracket.close()  # the span goes on; what runs in the block is the application's
                yield value

    return call

"""
Wait for the first connection of a driver: until then nothing else of the driver layer is loaded.

Standard library only. Contrib's instrumentors import their drivers in every process of the launcher, and a sync program
may have psycopg: neither is to pay for what it does not use, or to hear of configuration that it has no use for.
"""

from __future__ import annotations

import functools
import operator
from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

# Where each driver makes a connection, whichever way the application asks for it.
CONNECTS = {
    "aiomysql": ("connection.Connection", "_connect"),
    "aiosqlite": ("core.Connection", "_connect"),
    "asyncmy": ("connection.Connection", "connect"),
    "asyncpg": ("connect_utils", "_connect"),
    "psycopg": ("AsyncConnection", "connect"),
}
# Where contrib has taken its wrapper off psycopg's class method, it leaves a bound method in the class.
CLASS_METHODS = (classmethod, MethodType)


def connect_function(module: ModuleType) -> tuple[Any, str]:
    """
    Return the class or module that has a driver's connecting function, and the function's name.

    Raises:
        AttributeError: The driver's shape is not known.
    """
    path, name = CONNECTS[module.__name__]
    return operator.attrgetter(path)(module), name


def tell_unknown(module: ModuleType, error: AttributeError) -> None:
    """
    Log that a driver's shape is not known.
    """
    import logging

    logging.getLogger("otel_async_sqla_agent").warning(
        "otel-async-sqla-agent does not know this version of %s and leaves it alone: %s", module.__name__, error
    )


class FirstConnect:
    """
    A driver that has not connected yet.

    Args:
        module: The driver.
        start: What to do before the first connection is made; never raises an `Exception`.
    """

    def __init__(self, module: ModuleType, start: Callable[[], None]) -> None:
        self.module = module
        self._start = start
        self._owner, self._name = connect_function(module)
        getattr(self._owner, self._name)  # where it is not there, this is not the driver that we know
        self._original: Any = None

    def install(self) -> None:
        """
        Stand in for the connecting function.
        """
        self._original = vars(self._owner)[self._name]
        self._stub = self._make_stub()
        setattr(self._owner, self._name, self._stub)

    def uninstall(self) -> None:
        """
        Give the function back, where no other tool has put its own over ours.
        """
        if vars(self._owner)[self._name] is self._stub:
            setattr(self._owner, self._name, self._original)

    def _make_stub(self) -> Any:
        @functools.wraps(getattr(self._original, "__func__", self._original))
        async def connect(*args: Any, **kwargs: Any) -> Any:
            # Where another tool has put its own over ours, it is in the midst of calling us.
            is_outermost = vars(self._owner)[self._name] is stub
            self._start()
            function = vars(self._owner)[self._name] if is_outermost else self._original
            return await self._bind(function, args)(**kwargs)

        stub = classmethod(connect) if isinstance(self._original, CLASS_METHODS) else connect
        return stub

    def _bind(self, function: Any, args: Any) -> Callable[..., Any]:
        """
        Bind a function as it stands in the class, or in the module, to the arguments that it is called with.
        """
        if not isinstance(self._owner, type):
            return functools.partial(function, *args)
        instance, owner = (None, args[0]) if isinstance(args[0], type) else (args[0], type(args[0]))
        return functools.partial(function.__get__(instance, owner), *args[1:])

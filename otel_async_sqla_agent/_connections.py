"""
Know an engine's driver connections, and what is said of those that the application has opened itself.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ._statement import Target


class Owner(Protocol):
    """
    Whoever knows which database a connection leads to: an engine's state, or the connection's own facts.
    """

    @property
    def target(self) -> Target:
        """
        Return where spans go, and what all of them say.
        """


class Connections:
    """
    Owners by driver connection; nothing here keeps a connection alive.
    """

    def __init__(self) -> None:
        self._owners: weakref.WeakKeyDictionary[Any, Owner] = weakref.WeakKeyDictionary()

    def add(self, connection: Any, owner: Owner) -> None:
        """
        Tell whose connection it is.
        """
        try:
            # An `async_creator` may take the connection out of asyncpg's own pool, which hands out proxies.
            self._owners[getattr(connection, "_con", None) or connection] = owner
        except TypeError:  # a driver's connection without weak references; none of those in the table is
            pass

    def owner(self, connection: Any) -> Owner | None:
        """
        Return whose connection it is; None while nobody has told.
        """
        return self._owners.get(connection)

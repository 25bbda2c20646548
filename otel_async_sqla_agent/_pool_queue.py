"""
Who waits for a connection in the queue of a pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class PoolQueue:
    """
    What asks the queue of one pool for a connection.
    """

    def __init__(self) -> None:
        self.pending = 0
        """
        Requests that wait.
        """
        self.waited: set[Any] = set()
        """
        Records that came out of a wait, until their checkout is over.
        """
        self._asking = 0
        self._served = 0

    def get(self, queue: Any, original: Callable[..., Any], block: bool = True, timeout: float | None = None) -> Any:
        """
        Stand in for `get()` of the queue, which blocks where the pool is exhausted.
        """
        if not block:
            return original(block, timeout)
        free, served = queue.qsize(), self._served
        # What lies in the queue may be for those who have asked before. SQLAlchemy up to 2.0.44 awaits that too, and
        # below Python 3.12 others ask in the meantime.
        waits = free <= self._asking
        self._asking += 1
        self.pending += waits
        try:
            record = original(block, timeout)
        finally:
            self._asking -= 1
            self.pending -= waits
        if waits and (free == 0 or served != self._served):  # else it has come first, and has got it at once
            self.waited.add(record)
        self._served += 1
        return record

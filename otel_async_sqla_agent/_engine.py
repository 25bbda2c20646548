"""
The engine layer: instrument what an async engine sends to its database, on the instance of its dialect.

Every statement, commit and ping that SQLAlchemy issues goes through the engine's dialect, so that brackets there
see success, error and cancellation alike; event listeners cannot: when another listener raises, no event tells.
Copies of an engine made by `execution_options()` share the dialect.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import wrapt

from ._engine_state import EngineState
from ._execution import silence_connects, unsilence_connects
from ._pool import EnginePools

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from sqlalchemy.engine import Dialect, Engine

    from ._config import Mode
    from ._connections import Connections
    from ._guard import Guard
    from ._metrics import Metrics
    from ._statement import StatementCore

_Call = Callable[..., Any]

# Under this name an engine's state stands in the `__dict__` of its dialect, and is gone with it.
_STATE = "_otel_async_sqla_engine"
_CONNECT = "_ConnectionRecord__connect"


class EngineLayer:
    """
    Instrument engines, and undo it.
    """

    def __init__(
        self,
        core: StatementCore,
        guard: Guard,
        pool_guard: Guard,
        metrics: Metrics,
        connections: Connections,
    ) -> None:
        self._core = core
        self._connections = connections
        self._guard = guard
        self._pool_guard = pool_guard
        self._metrics = metrics
        self._dialects: weakref.WeakSet[Dialect] = weakref.WeakSet()
        self._unwrap_connect: Callable[[], None] | None = None
        self._silenced: weakref.WeakSet[Engine] = weakref.WeakSet()

    def instrument(self, sync_engine: Engine, tracer: Tracer, mode: Mode) -> bool:
        """
        Instrument an engine.

        Args:
            sync_engine: The engine behind an `AsyncEngine`.
            tracer: Where its spans go.
            mode: Which layers make them.

        Returns:
            False if it is instrumented already.
        """
        dialect = sync_engine.dialect
        if _STATE in dialect.__dict__:
            self._silence_connects(sync_engine)
            return False
        if self._unwrap_connect is None:
            self._unwrap_connect = _wrap_connect()
        pools = EnginePools.of(sync_engine.pool) or EnginePools(self._core, self._pool_guard, self._metrics)
        state = EngineState(self._core, self._guard, pools, self._connections, sync_engine, tracer, mode)
        try:
            state.wrap(dialect)
        except BaseException:
            state.unwrap(dialect)
            raise
        dialect.__dict__[_STATE] = state
        self._dialects.add(dialect)
        self._silence_connects(sync_engine)
        return True

    def use_tracer(self, sync_engine: Engine, tracer: Tracer) -> None:
        """
        Send the spans of an instrumented engine through another tracer.
        """
        state: EngineState = sync_engine.dialect.__dict__[_STATE]
        state.tracer = tracer
        state.refresh(sync_engine.dialect)

    def uninstrument(self) -> None:
        """
        Give every dialect, and SQLAlchemy's connection record, the identical methods back.
        """
        # What another tool has wrapped in the meantime passes through from now on.
        self._guard.active = self._pool_guard.active = False
        for dialect in list(self._dialects):
            state: EngineState = dialect.__dict__.pop(_STATE)
            state.unwrap(dialect)
            state.pools.unwrap()
        self._dialects.clear()
        for sync_engine in list(self._silenced):
            unsilence_connects(sync_engine)
        self._silenced.clear()
        if self._unwrap_connect is not None:
            self._unwrap_connect()
            self._unwrap_connect = None

    def _silence_connects(self, sync_engine: Engine) -> None:
        state: EngineState = sync_engine.dialect.__dict__[_STATE]
        if silence_connects(sync_engine, state, state.skipping):
            self._silenced.add(sync_engine)


def _wrap_connect() -> Callable[[], None]:
    """
    Bracket real connects at the one place that has driver connect, `connect` listeners and `initialize` in it.

    Returns:
        What undoes it.
    """
    from sqlalchemy.pool.base import _ConnectionRecord

    original = getattr(_ConnectionRecord, _CONNECT)

    def connect(wrapped: _Call, record: Any, args: Any, kwargs: Any) -> Any:
        dialect = record._ConnectionRecord__pool._dialect
        state: EngineState | None = getattr(dialect, _STATE, None)
        if state is None:
            return wrapped(*args, **kwargs)
        return state.connect(dialect, record, functools.partial(wrapped, *args, **kwargs))

    wrapper = wrapt.wrap_function_wrapper(_ConnectionRecord, _CONNECT, connect)

    def unwrap() -> None:
        if vars(_ConnectionRecord).get(_CONNECT) is wrapper:  # else another tool has put its own over ours
            setattr(_ConnectionRecord, _CONNECT, original)

    return unwrap

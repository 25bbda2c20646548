"""
Stand in front of opentelemetry-instrumentation-sqlalchemy, where an engine is async.

On an async engine it starts two spans a query, ends one, and counts the pool twice
(https://github.com/open-telemetry/opentelemetry-python-contrib/issues/2149). Sync engines stay its own.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine.base import Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from opentelemetry.trace import Tracer, TracerProvider

_logger = logging.getLogger("otel_async_sqla_agent")

_CONTRIB = "opentelemetry.instrumentation.sqlalchemy"
_UNDERSTOOD = {
    "engine",
    "engines",
    "meter_provider",
    "raise_exception_on_conflict",
    "skip_dep_check",
    "tracer_provider",
}


@dataclass
class _Taken:
    """
    What contrib had of an engine, or would have had.
    """

    listeners: list[tuple[str, Any]] = field(default_factory=list)
    tracers: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    connect: Any = None  # SQLAlchemy's function, where the engine has it as a method: a bound one would hold the engine


class ContribSQLAlchemy:
    """
    Contrib's instrumentor, stepped aside for async engines.

    Args:
        module: `opentelemetry.instrumentation.sqlalchemy`.
        instrument_engine: What to do with an engine that contrib was given: a function of the sync engine, the
            TracerProvider that contrib was given, and contrib's tracer; each of the last two may be None.
    """

    distribution = "opentelemetry-instrumentation-sqlalchemy"

    def __init__(
        self, module: ModuleType, instrument_engine: Callable[[Engine, TracerProvider | None, Tracer | None], None]
    ) -> None:
        self._engine_tracer: Any = module.EngineTracer
        self._instrumentor: Any = module.SQLAlchemyInstrumentor
        self._instrument_engine = instrument_engine
        self._taken: weakref.WeakKeyDictionary[Engine, _Taken] = weakref.WeakKeyDictionary()
        self._tracer_provider: TracerProvider | None = None
        self._lost_options: list[str] = []
        self._original_init = self._engine_tracer.__init__
        self._engine_tracer.__init__ = self._stepping_aside(self._original_init)
        self._instrumentor.instrument = self._listening(self._instrumentor.instrument)

    @property
    def tracer_provider(self) -> TracerProvider | None:
        """
        Return the provider that contrib was given for all engines, also where it has refused SQLAlchemy's version.
        """
        return self._tracer_provider

    def take_over(self, engine: Engine) -> Tracer | None:
        """
        Take contrib's listeners and its `connect` span off an engine.

        Returns:
            The tracer that contrib used for the engine up to now, if it did.
        """
        tracer = None
        taken = self._taken.setdefault(engine, _Taken())
        self._bypass_connect(engine)
        for entry in list(self._engine_tracer._remove_event_listener_params):
            target, identifier, listener = entry
            if target() is engine:
                if event.contains(engine, identifier, listener):  # contrib may note one twice that is there once
                    event.remove(engine, identifier, listener)
                self._engine_tracer._remove_event_listener_params.remove(entry)
                taken.listeners.append((identifier, listener))
                tracer = getattr(getattr(listener, "__self__", None), "tracer", tracer)
        return tracer

    def uninstall(self) -> None:
        """
        Give contrib its place back.
        """
        self._engine_tracer.__init__ = self._original_init
        del self._instrumentor.instrument  # the base class has the original
        active = self._instrumentor().is_instrumented_by_opentelemetry
        for engine, taken in list(self._taken.items()):
            ours = engine.__dict__.get("connect")
            if taken.connect is not None and getattr(ours, "__func__", None) is taken.connect:
                del engine.__dict__["connect"]
            if active:
                self._give_back(engine, taken)
        self._taken.clear()

    def _give_back(self, engine: Engine, taken: _Taken) -> None:
        for identifier, listener in taken.listeners:
            # As contrib registers them: https://github.com/open-telemetry/opentelemetry-python-contrib, engine.py
            changes_statement = {"retval": True} if identifier == "before_cursor_execute" else {}
            self._engine_tracer._register_event_listener(engine, identifier, listener, **changes_statement)
        for engine_tracer, tracer, args, kwargs in taken.tracers:
            self._original_init(engine_tracer, tracer, engine, *args, **kwargs)

    def _stepping_aside(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def __init__(engine_tracer: Any, tracer: Any, engine: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            engine = getattr(engine, "sync_engine", engine)
            if not getattr(engine.dialect, "is_async", False):
                original(engine_tracer, tracer, engine, *args, **kwargs)
                return
            self._instrument_engine(engine, self._tracer_provider, tracer)
            taken = self._taken.setdefault(engine, _Taken())
            taken.tracers.append((engine_tracer, tracer, args, kwargs))
            self._warn_of_lost_options()

        return __init__

    def _bypass_connect(self, engine: Engine) -> None:
        """
        Give the engine SQLAlchemy's own `connect`, where contrib has wrapped it on the class.
        """
        if "connect" in engine.__dict__ or not self._instrumentor().is_instrumented_by_opentelemetry:
            return
        connect = _connect_without_contrib(type(engine))
        if connect is not None:
            self._taken[engine].connect = connect
            engine.__dict__["connect"] = MethodType(connect, engine)

    def _hear(self, instrumentor: Any, options: dict[str, Any]) -> None:
        provider = options.get("tracer_provider")
        if not instrumentor.is_instrumented_by_opentelemetry:
            # A new beginning: what contrib had of engines before, it has given up itself.
            self._tracer_provider = provider
            for taken in self._taken.values():
                taken.listeners.clear()
                taken.tracers.clear()
        self._lost_options = sorted(key for key, value in options.items() if value and key not in _UNDERSTOOD)
        engines = options.get("engines")
        for engine in (options.get("engine"), *(engines if isinstance(engines, Sequence) else ())):
            engine = getattr(engine, "sync_engine", engine)
            if getattr(getattr(engine, "dialect", None), "is_async", False):
                self._instrument_engine(engine, provider, None)
                self._warn_of_lost_options()

    def _listening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """
        Hear what the application calls `instrument()` with, also where contrib refuses (SQLAlchemy 2.1).
        """

        @functools.wraps(original)
        def instrument(instrumentor: Any, **kwargs: Any) -> Any:
            try:
                self._hear(instrumentor, kwargs)
            except Exception:
                _logger.exception("otel-async-sqla-agent could not read the arguments of SQLAlchemyInstrumentor")
            try:
                return original(instrumentor, **kwargs)
            finally:
                for engine in list(self._taken):
                    self._bypass_connect(engine)

        return instrument

    def _warn_of_lost_options(self) -> None:
        if self._lost_options:
            _logger.warning(
                "SQLAlchemyInstrumentor().instrument(%s): an async engine is instrumented by otel-async-sqla-agent, "
                "which has no equivalent of these options",
                ", ".join(self._lost_options),
            )
            self._lost_options = []


def _connect_without_contrib(engine_class: type[Engine]) -> Callable[..., Any] | None:
    """
    Return SQLAlchemy's own `Engine.connect`; None where the application has overridden it.
    """
    owner = next(base for base in engine_class.__mro__ if "connect" in vars(base))
    if not owner.__module__.startswith("sqlalchemy."):
        return None
    # SQLAlchemy 1.4 has an engine class that overrides it, to do nothing but call this one, which contrib wraps.
    connect: Any = vars(Engine)["connect"]
    while getattr(getattr(connect, "_self_wrapper", None), "__module__", "").startswith(_CONTRIB):
        connect = connect.__wrapped__
    return connect  # type: ignore[no-any-return]

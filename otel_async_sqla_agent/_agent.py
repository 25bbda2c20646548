"""
Decide what is instrumented when: what the import hook's callbacks do.

Importing this module must stay cheap. OpenTelemetry is loaded with the first async engine.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from ._config import Config, Mode
from .environment_variables import OTEL_ASYNC_SQLA_MODE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import TypeGuard

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider
    from sqlalchemy.engine import Engine

    from ._contrib import ContribSQLAlchemy
    from ._engine import EngineLayer

_logger = logging.getLogger("otel_async_sqla_agent")


class Agent:
    """
    Instrument async engines as they are made.

    Args:
        environ: The environment at activation, with the options of `instrument()` on top.
        tracer_provider: Where spans go; the global one if None.
        meter_provider: Where metrics go; the global one if None.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._environ = environ
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._contrib: ContribSQLAlchemy | None = None
        self._lock = threading.RLock()
        self._active = True
        self._announced = False
        self._failed = False
        self._undo: list[Callable[[], None]] = []

    def sqlalchemy_imported(self, module: ModuleType) -> None:
        """
        Hear of every async engine: those that exist, and those that will be made.

        `AsyncEngine.__init__` is what `create_async_engine`, `async_engine_from_config`, direct construction and
        names imported earlier all end in.
        """
        from sqlalchemy.engine import Engine

        self._wrap_init(module.AsyncEngine)
        for reference in list(module.AsyncEngine._proxy_objects):
            target = reference()
            if isinstance(target, Engine):
                self.instrument_engine(target)

    def contrib_imported(self, module: ModuleType) -> None:
        """
        Keep contrib's instrumentor away from async engines.
        """
        from ._contrib import ContribSQLAlchemy

        with self._lock:
            self._contrib = ContribSQLAlchemy(module, self.instrument_engine)
            self._undo.append(self._contrib.uninstall)
            for engine in list(self._engines):
                self.instrument_engine(engine)

    def instrument_engine(
        self,
        sync_engine: Engine,
        tracer_provider: TracerProvider | None = None,
        contrib_tracer: Tracer | None = None,
    ) -> None:
        """
        Instrument an engine, once; never raises.

        Args:
            sync_engine: The engine behind an `AsyncEngine`.
            tracer_provider: Where the spans of this engine go, if not where all go.
            contrib_tracer: What contrib would have used for it; it leads to a provider that is not known otherwise.
        """
        try:
            with self._lock:
                if self._active:
                    self._instrument_engine(sync_engine, tracer_provider, contrib_tracer)
        except Exception:
            if not self._failed:
                _logger.exception("otel-async-sqla-agent could not instrument an engine; it works without spans")
            self._failed = True

    def uninstrument(self) -> None:
        """
        Give back all that was replaced, the last first.
        """
        with self._lock:
            self._active = False
            while self._undo:
                try:
                    self._undo.pop()()
                except Exception:
                    _logger.exception("otel-async-sqla-agent could not give something back")

    @functools.cached_property
    def _layer(self) -> EngineLayer:
        from . import __version__
        from ._engine import EngineLayer
        from ._guard import Guard
        from ._metrics import Metrics
        from ._pool import PoolRegistry
        from ._statement import StatementCore

        self._config = Config.from_env(self._environ)
        _warn_of_missing_layer(self._config.mode)
        registry = PoolRegistry()
        metrics = Metrics(
            enabled=self._config.metrics,
            meter_provider=self._meter_provider,
            version=__version__,
            observed=registry.callbacks,
        )
        core = StatementCore(self._config, metrics, global_provider=self._tracer_provider is None)
        engine_guard, pool_guard = (Guard(layer, __version__, self._meter_provider) for layer in ("engine", "pool"))
        layer = EngineLayer(core, engine_guard, pool_guard, metrics, registry)
        self._undo.append(layer.uninstrument)
        return layer

    def _instrument_engine(
        self, sync_engine: Engine, tracer_provider: TracerProvider | None, contrib_tracer: Tracer | None
    ) -> None:
        new = self._layer.instrument(sync_engine, self._default_tracer)
        self._engines.add(sync_engine)
        if not self._announced:
            self._announced = True
            self._log_start(sync_engine)
        if self._contrib is not None:
            contrib_tracer = self._contrib.take_over(sync_engine) or contrib_tracer
            tracer_provider = tracer_provider or (self._contrib.tracer_provider if new else None)
        if tracer_provider is not None:
            self._layer.use_tracer(sync_engine, self._tracer(tracer_provider))
        elif self._goes_elsewhere(contrib_tracer):
            self._layer.use_tracer(sync_engine, contrib_tracer)

    def _goes_elsewhere(self, contrib_tracer: Tracer | None) -> TypeGuard[Tracer]:
        """
        Tell whether contrib has been given a provider that is not ours, of which we know the tracer alone.
        """
        destination = getattr(contrib_tracer, "span_processor", None)
        return destination is not None and destination is not getattr(self._default_tracer, "span_processor", None)

    @functools.cached_property
    def _default_tracer(self) -> Tracer:
        return self._tracer(self._tracer_provider)

    def _tracer(self, provider: TracerProvider | None) -> Tracer:
        from opentelemetry import trace

        from . import __version__
        from ._semconv import schema_url

        return trace.get_tracer(
            "otel_async_sqla_agent",
            __version__,
            tracer_provider=provider,
            schema_url=schema_url(self._config.attribute_names),
        )

    def _log_start(self, sync_engine: Engine) -> None:
        from . import __version__

        _logger.info(
            "otel-async-sqla-agent %s instruments async engines: mode %s, driver %s, stepped aside: %s",
            __version__,
            self._config.mode.value,
            sync_engine.dialect.driver,
            "nothing" if self._contrib is None else "opentelemetry-instrumentation-sqlalchemy",
        )

    def _wrap_init(self, async_engine: Any) -> None:
        original = async_engine.__init__

        @functools.wraps(original)
        def __init__(instance: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(instance, *args, **kwargs)
            self.instrument_engine(instance.sync_engine)

        async_engine.__init__ = __init__

        def unwrap() -> None:
            if async_engine.__init__ is __init__:  # else another tool has put its own over ours
                async_engine.__init__ = original

        self._undo.append(unwrap)


def _warn_of_missing_layer(mode: Mode) -> None:
    if mode in (Mode.DRIVER, Mode.BOTH):
        _logger.warning(
            "%s=%s needs the driver layer, which this version does not have: the engine layer makes the spans, "
            "as with `engine`",
            OTEL_ASYNC_SQLA_MODE,
            mode.value,
        )

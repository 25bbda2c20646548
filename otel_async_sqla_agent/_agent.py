"""
Decide what is instrumented when: what the import hook's callbacks do.

Importing this module must stay cheap. OpenTelemetry is loaded with the first async engine.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import TYPE_CHECKING, Any

from ._config import Config, Mode
from .environment_variables import OTEL_ASYNC_SQLA_MODE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

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

        self._contrib = ContribSQLAlchemy(module, self.instrument_engine)
        self._undo.append(self._contrib.uninstall)
        for engine in list(self._engines):
            self._take_over(engine)

    def instrument_engine(self, sync_engine: Engine, tracer_provider: TracerProvider | None = None) -> None:
        """
        Instrument an engine, once; never raises.

        Args:
            sync_engine: The engine behind an `AsyncEngine`.
            tracer_provider: Where the spans of this engine go, if not where all go.
        """
        try:
            self._instrument_engine(sync_engine, tracer_provider)
        except Exception:
            if not self._failed:
                _logger.exception("otel-async-sqla-agent could not instrument an engine; it works without spans")
            self._failed = True

    def uninstrument(self) -> None:
        """
        Give back all that was replaced, the last first.
        """
        while self._undo:
            self._undo.pop()()

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

    def _instrument_engine(self, sync_engine: Engine, tracer_provider: TracerProvider | None) -> None:
        first = not self._engines
        if self._layer.instrument(sync_engine, self._tracer(self._tracer_provider)) and first:
            self._log_start(sync_engine)
        if sync_engine not in self._engines:
            self._engines.add(sync_engine)
            self._take_over(sync_engine)
        if tracer_provider is not None:
            self._layer.use_tracer(sync_engine, self._tracer(tracer_provider))

    def _take_over(self, sync_engine: Engine) -> None:
        """
        Take an engine from contrib, with the tracer of the provider that contrib had been given for it.
        """
        tracer = None if self._contrib is None else self._contrib.take_over(sync_engine)
        destination = getattr(tracer, "span_processor", None)
        ours = getattr(self._tracer(self._tracer_provider), "span_processor", None)
        if tracer is not None and destination is not None and destination is not ours:
            self._layer.use_tracer(sync_engine, tracer)

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
        self._undo.append(lambda: setattr(async_engine, "__init__", original))


def _warn_of_missing_layer(mode: Mode) -> None:
    if mode in (Mode.DRIVER, Mode.BOTH):
        _logger.warning(
            "%s=%s needs the driver layer, which this version does not have: the engine layer makes the spans, "
            "as with `engine`",
            OTEL_ASYNC_SQLA_MODE,
            mode.value,
        )

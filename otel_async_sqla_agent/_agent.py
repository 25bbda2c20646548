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

    from ._connections import Connections
    from ._contrib import ContribSQLAlchemy
    from ._contrib_drivers import ContribDriver
    from ._driver import DriverLayer
    from ._driver_imports import DriverImports
    from ._engine import EngineLayer
    from ._flush import ExitFlush
    from ._guard import Guard
    from ._metrics import Metrics
    from ._statement import StatementCore

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
        self._contrib_drivers: list[ContribDriver] = []
        self._uncovered: set[str] = set()
        self._lock = threading.RLock()
        self._active = True
        self._announced = False
        self._checked = False
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

    def driver_imported(self, module: ModuleType) -> None:
        """
        Instrument an async driver, when its first connection is made.
        """
        with self._lock:
            if self._active:
                self._drivers.add(module)

    def contrib_driver_imported(self, module: ModuleType) -> None:
        """
        Keep contrib's instrumentor for a driver away from what is ours.
        """
        from ._contrib_drivers import ContribDriver

        with self._lock:
            contrib = ContribDriver(module, self._drivers)
            self._contrib_drivers.append(contrib)
            self._undo.append(contrib.uninstall)

    def start_drivers(self) -> None:
        """
        Load the driver layer, once a connection is about to be made; never raises an `Exception`.
        """
        try:
            with self._lock:
                if self._active and not self._drivers.started and self._may_work():
                    self._drivers.start()
        except Exception:
            _logger.exception("otel-async-sqla-agent could not instrument the drivers; they work without spans")

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
                if self._active and self._may_work():
                    self._instrument_engine(sync_engine, tracer_provider, contrib_tracer)
        except Exception:
            if not self._failed:
                _logger.exception("otel-async-sqla-agent could not instrument an engine; it works without spans")
            self._failed = True

    def _may_work(self) -> bool:
        """
        Tell whether what the agent needs is there, in versions that fit the application's; else switch it off.
        """
        if not self._checked:
            self._checked = True
            from ._folder import make_dependencies_visible

            mismatch = make_dependencies_visible()
            if mismatch is not None:
                _logger.warning("otel-async-sqla-agent stays off: %s; install versions that fit", mismatch)
                self.uninstrument()
        return self._active

    def uninstrument(self) -> None:
        """
        Give back all that was replaced, the last first.
        """
        with self._lock:
            self._active = False
            self._drivers.stop_waiting()
            while self._undo:
                try:
                    self._undo.pop()()
                except Exception:
                    _logger.exception("otel-async-sqla-agent could not give something back")

    @functools.cached_property
    def _config(self) -> Config:
        return Config.from_env(self._environ)

    @functools.cached_property
    def _drivers(self) -> DriverImports:
        from ._driver_imports import DriverImports

        return DriverImports(self._lock, self.start_drivers, lambda: self._driver_layer, self._driver_tracer)

    @functools.cached_property
    def _connections(self) -> Connections:
        from ._connections import Connections

        return Connections()

    @functools.cached_property
    def _metrics(self) -> Metrics:
        from . import __version__
        from ._metrics import Metrics
        from ._pools import REGISTRY

        return Metrics(
            enabled=self._config.metrics,
            meter_provider=self._meter_provider,
            version=__version__,
            observed=REGISTRY.callbacks,
        )

    @functools.cached_property
    def _core(self) -> StatementCore:
        from ._statement import StatementCore

        if self._config.flush_on_exit:
            self._flush.install()
            self._undo.append(self._flush.uninstall)
        return StatementCore(self._config, self._metrics, global_provider=self._tracer_provider is None)

    @functools.cached_property
    def _flush(self) -> ExitFlush:
        from ._flush import ExitFlush

        return ExitFlush(self._guard("flush"), self._meter_provider)

    @functools.cached_property
    def _engine_layer(self) -> EngineLayer:
        from ._engine import EngineLayer

        layer = EngineLayer(
            self._core,
            self._guard("engine"),
            self._guard("pool"),
            self._metrics,
            self._connections,
        )
        self._undo.append(layer.uninstrument)
        return layer

    @functools.cached_property
    def _driver_layer(self) -> DriverLayer:
        from ._driver import DriverLayer

        layer = DriverLayer(self._core, self._guard("driver"), self._connections)
        self._undo.append(layer.uninstrument)
        return layer

    def _guard(self, layer: str) -> Guard:
        from . import __version__
        from ._guard import Guard

        return Guard(layer, __version__, self._meter_provider)

    def _instrument_engine(
        self, sync_engine: Engine, tracer_provider: TracerProvider | None, contrib_tracer: Tracer | None
    ) -> None:
        self.start_drivers()
        new = self._engine_layer.instrument(sync_engine, self._default_tracer, self._mode(sync_engine))
        self._engines.add(sync_engine)
        if not self._announced:
            self._announced = True
            self._log_start(sync_engine)
        if self._contrib is not None:
            contrib_tracer = self._contrib.take_over(sync_engine) or contrib_tracer
            tracer_provider = tracer_provider or (self._contrib.tracer_provider if new else None)
        if tracer_provider is not None:
            self._engine_layer.use_tracer(sync_engine, self._tracer(tracer_provider))
        elif self._goes_elsewhere(contrib_tracer):
            self._engine_layer.use_tracer(sync_engine, contrib_tracer)
            self._flush.add(contrib_tracer.span_processor)

    def _mode(self, sync_engine: Engine) -> Mode:
        """
        Return the mode of one engine: a driver that makes no spans leaves all of them to the engine layer.
        """
        mode, driver = self._config.mode, sync_engine.dialect.driver
        if mode not in (Mode.DRIVER, Mode.BOTH) or self._driver_layer.covers(sync_engine.dialect):
            return mode
        if driver not in self._uncovered:
            self._uncovered.add(driver)
            _logger.warning(
                "%s=%s: no spans are made of the calls of %s, so the engine layer makes those of its engines",
                OTEL_ASYNC_SQLA_MODE,
                mode.value,
                driver,
            )
        return Mode.ENGINE

    def _goes_elsewhere(self, contrib_tracer: Tracer | None) -> TypeGuard[Any]:
        """
        Tell whether contrib has been given a provider that is not ours, of which we know the tracer alone.
        """
        destination = getattr(contrib_tracer, "span_processor", None)
        return destination is not None and destination is not getattr(self._default_tracer, "span_processor", None)

    @functools.cached_property
    def _default_tracer(self) -> Tracer:
        return self._tracer(self._tracer_provider)

    def _driver_tracer(self, provider: TracerProvider | None) -> Tracer:
        return self._default_tracer if provider is None else self._tracer(provider)

    def _tracer(self, provider: TracerProvider | None) -> Tracer:
        from opentelemetry import trace

        from . import __version__
        from ._semconv import schema_url

        if provider is not None:
            self._flush.add(provider)
        return trace.get_tracer(
            "otel_async_sqla_agent",
            __version__,
            tracer_provider=provider,
            schema_url=schema_url(self._config.attribute_names),
        )

    def _log_start(self, sync_engine: Engine) -> None:
        from . import __version__

        aside = [contrib.distribution for contrib in (self._contrib, *self._contrib_drivers) if contrib is not None]
        _logger.info(
            "otel-async-sqla-agent %s instruments async engines: mode %s, driver %s, stepped aside: %s",
            __version__,
            self._config.mode.value,
            sync_engine.dialect.driver,
            ", ".join(aside) or "nothing",
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

"""
The one way in: arm the agent in this process.

Standard library only. It runs in every process of the launcher, most of which never open an async engine; whatever
costs time waits for the application to import what is instrumented.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock

from ._importhook import ImportHook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import Any

    from ._agent import Agent

_MODE = "OTEL_ASYNC_SQLA_MODE"
_SDK = "OTEL_ASYNC_SQLA_SDK"
_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_CONTRIB = "opentelemetry.instrumentation"
# Module to the method of the agent that hears of it. The drivers come first: engines that exist when the agent is
# activated ask for them.
_HOOKS = {
    **dict.fromkeys(("aiomysql", "aiosqlite", "asyncmy", "asyncpg", "psycopg"), "driver_imported"),
    **{f"{_CONTRIB}.{name}": "contrib_driver_imported" for name in ("asyncpg", "psycopg", "sqlite3")},
    # This module, not the package: `async_engine_from_config` uses the names in here.
    "sqlalchemy.ext.asyncio.engine": "sqlalchemy_imported",
    f"{_CONTRIB}.sqlalchemy": "contrib_imported",
}

_active: _Activation | None = None
_lock = RLock()


class _Activation:
    """
    An armed agent: the import hook, and behind it the agent itself once it is needed.
    """

    def __init__(self, environ: Mapping[str, str], providers: Mapping[str, Any]) -> None:
        self._environ = environ
        self._providers = providers
        self._agent: Agent | None = None
        disabled = _disabled(environ)
        hooks = {module: method for module, method in _HOOKS.items() if module not in disabled}
        self.hook = ImportHook({module: self._guarded(method) for module, method in hooks.items()})
        self._driver_in_use = any(hooks[module] == "driver_imported" for module in sys.modules.keys() & hooks)

    def agent(self) -> Agent:
        with _lock:
            if self._agent is None:
                from ._agent import Agent

                self._agent = Agent(self._environ, **self._providers)
            return self._agent

    def arm(self) -> None:
        self.hook.install()
        if self._driver_in_use:  # it may have connected already: its next connection is not waited for
            self.agent().start_drivers()

    def disarm(self) -> None:
        self.hook.uninstall()
        if self._agent is not None:
            self._agent.uninstrument()

    def _guarded(self, method: str) -> Callable[[ModuleType], None]:
        def callback(module: ModuleType) -> None:
            try:
                getattr(self.agent(), method)(module)
            except Exception:  # noqa: BLE001 - it would break the application's import
                _log_failure(f"could not instrument {module.__name__}")

        return callback


def activate(options: Mapping[str, str] | None = None, **providers: Any) -> None:
    """
    Arm the agent, once; a second activation changes nothing. Never raises.

    Args:
        options: Variables that win over the environment's.
        providers: `tracer_provider` and `meter_provider`; the global ones by default.
    """
    try:
        with _lock:
            _activate(options or {}, providers)
    except Exception:  # noqa: BLE001 - the launcher would instrument nothing at all
        _log_failure("could not be activated")


def start() -> None:
    """
    Arm the agent for the files of `preinstall`: without the launcher nobody else configures the SDK.

    Several of them may stand in one process; the first has armed it.
    """
    if _active is None:
        activate({_SDK: os.environ.get(_SDK) or "auto"})


def _activate(options: Mapping[str, str], providers: Mapping[str, Any]) -> None:
    global _active
    if _active is not None:
        _warn_of_lost_options({**options, **providers})
        return
    environ = {key: value for key, value in os.environ.items() if key.startswith("OTEL_")}
    environ.update(options)
    if not _switched_off(environ):
        _active = _Activation(environ, providers)
        _active.arm()


def include_children() -> None:
    """
    Put the launcher's folder back on PYTHONPATH, so that spawned workers make spans too. Never raises.

    opentelemetry-instrumentation does it itself from 0.63b0 on. An application that calls the launcher's
    `initialize()` itself has no such folder.
    """
    try:
        launcher = os.path.dirname(getattr(sys.modules.get("sitecustomize"), "__file__", None) or "")
        if _active is not None and os.path.basename(launcher) == "auto_instrumentation":
            folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if launcher not in folders:
                os.environ["PYTHONPATH"] = os.pathsep.join([launcher, *filter(None, folders)])
    except Exception:  # noqa: BLE001 - the launcher would report that nothing is instrumented
        _log_failure("could not reach child processes")


def deactivate() -> None:
    """
    Disarm the agent and give everything back that it has replaced. Never raises.
    """
    global _active
    try:
        with _lock:
            activation, _active = _active, None
            if activation is not None:
                activation.disarm()
            # The class may have activated us, and has its own memory of it.
            if (module := sys.modules.get(f"{__package__}._instrumentor")) is not None:
                module.AsyncSQLAlchemyInstrumentor()._is_instrumented_by_opentelemetry = False
    except Exception:  # noqa: BLE001
        _log_failure("could not be deactivated")


def _disabled(environ: Mapping[str, str]) -> set[str]:
    """
    Return the instrumentations that are not wanted: this one's name, or a driver's.
    """
    return {name.strip() for name in environ.get(_DISABLED, "").split(",")}


def _switched_off(environ: Mapping[str, str]) -> bool:
    """
    Tell whether the environment wants no agent; the launcher calls us even then.
    """
    return (
        environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or not _disabled(environ).isdisjoint({"async_sqla", "*"})
        or environ.get(_MODE, "").strip().lower() == "off"
    )


def _warn_of_lost_options(options: Mapping[str, Any]) -> None:
    if options:
        import logging

        logging.getLogger("otel_async_sqla_agent").warning(
            "the agent is active already, so these options of a second activation are ignored: %s; "
            "call uninstrument() first",
            ", ".join(sorted(options)),
        )


def _log_failure(what: str) -> None:
    import logging

    logging.getLogger("otel_async_sqla_agent").exception("otel-async-sqla-agent %s", what)

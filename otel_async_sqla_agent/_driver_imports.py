"""
Know which drivers have been imported, and what stands in front of each: nothing but its connecting function, until a
connection is about to be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._first_connect import FirstConnect, tell_unknown

if TYPE_CHECKING:
    from _thread import RLock
    from collections.abc import Callable
    from types import ModuleType

    from opentelemetry.trace import Tracer, TracerProvider

    from ._driver import DriverLayer


class DriverImports:
    """
    The drivers of this process.

    Args:
        lock: The agent's.
        before_connect: What to do before the first connection of a driver; it calls `start()`.
        layer: Loads the driver layer.
        tracer: Makes a tracer of the agent's from a provider; of the agent's own if it gets None.
    """

    def __init__(
        self,
        lock: RLock,
        before_connect: Callable[[], None],
        layer: Callable[[], DriverLayer],
        tracer: Callable[[TracerProvider | None], Tracer],
    ) -> None:
        self.started = False
        self._lock = lock
        self._before_connect = before_connect
        self._layer = layer
        self._tracer = tracer
        self._modules: dict[str, ModuleType] = {}
        self._waiting: dict[str, FirstConnect] = {}
        self._contrib: dict[str, tuple[bool, TracerProvider | None]] = {}

    def add(self, module: ModuleType) -> None:
        """
        Take a driver that has been imported.
        """
        try:
            first_connect = FirstConnect(module, self._before_connect)
        except AttributeError as error:
            tell_unknown(module, error)
            return
        with self._lock:
            self._modules[module.__name__] = module
            if not self.started:
                self._waiting[module.__name__] = first_connect
            self.step_in(module.__name__)

    def start(self) -> None:
        """
        Replace the rest of the drivers' functions, from now on also of those that are imported later.
        """
        with self._lock:
            self.started = True
            self.stop_waiting()
            for driver in self._modules:
                self.step_in(driver)

    def stop_waiting(self) -> None:
        """
        Give the connecting functions back.
        """
        while self._waiting:
            self._waiting.popitem()[1].uninstall()

    def step_back(self, driver: str) -> None:
        """
        Give a driver's functions back for the moment in which contrib puts its own there, or takes them away.
        """
        with self._lock:
            if driver in self._waiting:
                self._waiting[driver].uninstall()
            elif self.started:
                self._layer().step_back(driver)

    def step_in(
        self, driver: str, *, contrib: bool | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        """
        Stand in front of a driver again.

        Args:
            driver: The driver's name.
            contrib: Whether contrib's functions are there; None if that is as before.
            tracer_provider: Where contrib was told that spans go, if it was.
        """
        with self._lock:
            if contrib is not None:
                self._contrib[driver] = contrib, tracer_provider
            if driver in self._waiting:
                self._waiting[driver].install()
            elif self.started and driver in self._modules:
                contrib, provider = self._contrib.get(driver, (False, None))
                self._layer().instrument(self._modules[driver], contrib=contrib, tracer=self._tracer(provider))

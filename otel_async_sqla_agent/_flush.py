"""
Send what is buffered where a process ends without the SDK's own `atexit` hook.

uvicorn raises the signal that stopped it once more, and lets it end the process; a forked child of multiprocessing ends
by `os._exit()`. By the SDK's defaults, the spans of the last five seconds and the metrics of the last minute are lost.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

from ._importhook import ImportHook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from opentelemetry.metrics import MeterProvider

    from ._guard import Guard

SECONDS = 2.0
"""
How long a process waits for its flushes, all of them together.
"""

_POLL_SECONDS = 0.005


class ExitFlush:
    """
    Flush the providers in use at the end of a server and of a child process.

    Nothing is imported for it: uvicorn and multiprocessing are hooked once the application imports them. Where the
    process ends through `atexit`, the SDK flushes, and ours would only make it export the metrics twice.

    Args:
        guard: What keeps a provider's failure away from the application.
        meter_provider: The one given to `instrument()`; the global providers are flushed in any case.
    """

    def __init__(self, guard: Guard, meter_provider: MeterProvider | None) -> None:
        self._guard = guard
        self._providers: weakref.WeakSet[Any] = weakref.WeakSet()
        if meter_provider is not None:
            self.add(meter_provider)
        self._seconds_left = SECONDS
        self._at_interrupt = signal.getsignal(signal.SIGINT)
        self._undo: list[Callable[[], None]] = []
        self._hook = ImportHook(
            {
                "uvicorn.server": functools.partial(guard.run, self._wrap_uvicorn),
                "multiprocessing.util": functools.partial(guard.run, self._follow_children),
            }
        )

    def install(self) -> None:
        """
        Hook what is imported already, and what will be.
        """
        self._guard.run(self._hook.install)

    def uninstall(self) -> None:
        """
        Give the identical originals back.
        """
        self._guard.active = False  # for children that are forked from now on
        self._hook.uninstall()
        while self._undo:
            self._undo.pop()()

    def add(self, provider: Any) -> None:
        """
        Flush one provider more; it is held weakly.
        """
        self._guard.run(self._providers.add, provider)

    def flush(self) -> None:
        """
        Flush all providers, and wait for it.
        """
        try:
            for _ in self._flushing():
                time.sleep(_POLL_SECONDS)
        except Exception as error:  # noqa: BLE001
            self._guard.failed(error)

    async def flush_async(self) -> None:
        """
        Flush all providers, and wait for it while the event loop goes on.
        """
        try:
            for _ in self._flushing():
                await asyncio.sleep(_POLL_SECONDS)
        except Exception as error:  # noqa: BLE001
            self._guard.failed(error)

    def _flushing(self) -> Iterator[None]:
        """
        Begin to flush, and yield as long as there is something to wait for.

        Each provider has a thread, since the SDK's `force_flush` takes as long as its exporter does, whatever it is
        allowed (https://github.com/open-telemetry/opentelemetry-python/issues/4568). They are daemons: where the time
        is up, the process ends without them.
        """
        if not self._guard.active or self._seconds_left <= 0:
            return
        begin = time.monotonic()
        milliseconds = int(self._seconds_left * 1000)
        threads = [
            threading.Thread(
                target=self._guard.run,
                args=(provider.force_flush, milliseconds),
                name="otel-async-sqla-flush",
                daemon=True,
            )
            for provider in self._in_use()
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and time.monotonic() - begin < self._seconds_left:
                yield
        finally:
            self._seconds_left -= time.monotonic() - begin

    def _in_use(self) -> list[Any]:
        """
        Return the providers that have something to flush: none of the API's own, none that is shut down.
        """
        providers = {*self._providers, trace.get_tracer_provider(), metrics.get_meter_provider()}
        return [
            provider
            for provider in providers
            # The SDK's MeterProvider would export once more, which its exporter warns of.
            if hasattr(provider, "force_flush") and getattr(provider, "_shutdown", None) is not True
        ]

    def _wrap_uvicorn(self, module: ModuleType) -> None:
        server_class: Any = module.Server
        original = server_class.shutdown

        # After an exception uvicorn raises no signal.
        @functools.wraps(original)
        async def shutdown(server: Any, *args: Any, **kwargs: Any) -> Any:
            result = await original(server, *args, **kwargs)
            if self._dies_of_signal(server):
                await self.flush_async()
            return result

        server_class.shutdown = shutdown

        def unwrap() -> None:
            if server_class.shutdown is shutdown:  # else another tool has put its own over ours
                server_class.shutdown = original

        self._undo.append(unwrap)

    def _dies_of_signal(self, server: Any) -> bool:
        """
        Tell whether a server's process will end by a signal; Ctrl-C is a KeyboardInterrupt, if not under gunicorn.
        """
        signals = getattr(server, "_captured_signals", None)
        if signals is None:  # before 0.29 there are none; a later version may keep them somewhere else
            return True
        harmless = {signal.SIGINT} if self._at_interrupt is signal.default_int_handler else set()
        return not harmless.issuperset(signals)

    def _follow_children(self, module: ModuleType) -> None:
        # Its registry holds the object weakly, but the function, with all that is bound to it, for ever.
        module.register_after_fork(self, ExitFlush._forked)
        if module.process.parent_process() is not None:
            self._flush_child()

    def _forked(self) -> None:
        self._seconds_left = SECONDS
        self._guard.run(self._flush_child)

    def _flush_child(self) -> None:
        """
        Flush before all else that multiprocessing does at the end of this child, unless it is a spawned one.
        """
        from multiprocessing import get_start_method
        from multiprocessing.util import Finalize

        if get_start_method(allow_none=True) == "spawn":  # ends as a program of its own does
            return
        self._undo.append(Finalize(None, self.flush, exitpriority=1000).cancel)

"""
Configure OpenTelemetry's SDK where nobody else has: the opt-in for processes without the launcher.
"""

from __future__ import annotations

import threading

from opentelemetry import metrics, trace


class SdkOptIn:
    """
    Configure the SDK, once, when the first connection is about to be opened.

    So late, because an application sets its own providers while it starts, and they are never overridden.

    Args:
        wanted: False where there is nothing to do.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._lock = threading.RLock()
        self._begun = self._done = not wanted

    def __call__(self) -> None:
        """
        Do it, if no provider is set by now; other threads wait for it.
        """
        if self._done:
            return
        with self._lock:
            begun, self._begun = self._begun, True
            try:
                if not begun and not _provider_is_set():
                    _configure()
            finally:
                self._done = True


def known_sampler(tracer: trace.Tracer) -> object | None:
    """
    Return the sampler of the SDK's tracer, if it keeps the attributes that a span is started with.
    """
    sampler = getattr(tracer, "sampler", None)
    return sampler if sampler is not None and _keeps_attributes(sampler) else None


def _keeps_attributes(sampler: object) -> bool:
    """
    Tell whether a sampler, and each that it asks, is one of the SDK's that do.
    """
    names = {base.__name__ for base in type(sampler).__mro__}
    return (
        type(sampler).__module__ == "opentelemetry.sdk.trace.sampling"
        and not names.isdisjoint(("StaticSampler", "TraceIdRatioBased", "ParentBased"))
        and all(_keeps_attributes(each) for each in vars(sampler).values() if hasattr(each, "should_sample"))
    )


def _provider_is_set() -> bool:
    return not (
        isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        # The API keeps this class to itself, and has no other way to ask.
        and type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    )


def _configure() -> None:
    """
    Run distro and configurator as the launcher does, with its own functions, but load no instrumentors.
    """
    from opentelemetry.instrumentation.auto_instrumentation import _load

    _load._load_distro().configure()
    _load._load_configurators()  # type: ignore[no-untyped-call]

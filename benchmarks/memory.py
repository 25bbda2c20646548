"""
Measure what stays in memory: engines that are dropped, and texts that are executed once.

A child runs as `python -m benchmarks.memory <engines|statements> <bare|agent>`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.results import Row
from integration.processes import ROOT, environ

ENGINES = 10_000
STATEMENTS = 100_000
FIRST = 1_000  # by then every cache is full
MARGIN = 50_000  # bytes over the bare program’s growth; one small object for each would be ten times that


class Held(NamedTuple):
    """
    What is alive after a garbage collection.
    """

    size: int  # bytes
    objects: int


def rows() -> Iterator[Row]:
    """
    Return the growth between the first thousand and the last, beyond what the program without the agent grows by.
    """
    for what, count in (("engines", ENGINES), ("statements", STATEMENTS)):
        children = [_start(what, variant) for variant in ("bare", "agent")]
        bare, agent = (_growth(child) for child in children)
        label = f"{count - FIRST:,} more {what}" + (
            ", each made and dropped" if what == "engines" else ", no text twice"
        )
        yield Row(
            f"{label}: memory",
            f"{agent.size / 1e3:+.1f} kB",
            f"bare {bare.size / 1e3:+.1f} kB",
            f"≤ bare + {MARGIN / 1e3:.0f} kB",
            agent.size - bare.size <= MARGIN,
        )
        yield Row(
            f"{label}: objects",
            f"{agent.objects:+}",
            f"bare {bare.objects:+}",
            "≤ bare + 100",
            agent.objects - bare.objects <= 100,
        )


def _start(what: str, variant: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, what, variant]
    return subprocess.Popen(command, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, text=True)


def _growth(child: subprocess.Popen[str]) -> Held:
    first, last = (Held(*held) for held in json.loads(child.communicate()[0]))
    return Held(last.size - first.size, last.objects - first.objects)


def _held() -> Held:
    gc.collect()
    return Held(tracemalloc.get_traced_memory()[0], len(gc.get_objects()))


def _instrument() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    import otel_async_sqla_agent

    otel_async_sqla_agent.instrument(tracer_provider=TracerProvider(shutdown_on_exit=False))


def _drop_engines() -> Iterator[Held]:
    from sqlalchemy.ext.asyncio import create_async_engine

    for number in range(1, ENGINES + 1):
        create_async_engine("postgresql+asyncpg://user:password@host/database")
        if number in (FIRST, ENGINES):
            yield _held()


async def _execute_texts() -> list[Held]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine, held = create_async_engine("sqlite+aiosqlite://"), []
    async with engine.connect() as connection:
        for number in range(1, STATEMENTS + 1):
            # Not `execute()`: SQLAlchemy compiles each text, which takes most of the time and fills caches of its own.
            await connection.exec_driver_sql(f"SELECT {number:06}")
            if number in (FIRST, STATEMENTS):
                held.append(_held())
    await engine.dispose()
    return held


def main(what: str, variant: str) -> None:
    """
    Print what is held after the first thousand and after the last, as JSON.
    """
    if variant == "agent":
        _instrument()
    tracemalloc.start()
    print(json.dumps(list(_drop_engines()) if what == "engines" else asyncio.run(_execute_texts())))


if __name__ == "__main__":
    main(*sys.argv[1:])

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
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.results import Row
from integration.processes import ROOT, environ

ENGINES = 10_000
STATEMENTS = 1_000_000
FIRST = 1_000  # by then every cache is full
MARGIN = 500  # what a process grows by once; one lost in each step would be 9,000 or more


class Held(NamedTuple):
    """
    What is alive after a garbage collection.

    Blocks, because tracemalloc would double the time: whatever is lost has a small object, which is a block.
    """

    blocks: int
    objects: int  # that the garbage collector knows


def rows() -> Iterator[Row]:
    """
    Return the growth between the first thousand and the last, which must be that of the program without the agent.
    """
    labels = {
        "engines": f"{ENGINES - FIRST:,} more engines, each made and dropped",
        "statements": f"{STATEMENTS - FIRST:,} more statements, no text twice",
    }
    children = {(what, variant): _start(what, variant) for what in labels for variant in ("bare", "agent")}
    for what, label in labels.items():
        grown = zip(Held._fields, _growth(children[what, "bare"]), _growth(children[what, "agent"]), strict=True)
        for unit, bare, agent in grown:
            yield Row(f"{label}: {unit}", f"{agent:+}", f"bare {bare:+}", f"≤ bare + {MARGIN}", agent <= bare + MARGIN)


def _start(what: str, variant: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, what, variant]
    return subprocess.Popen(command, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, text=True)


def _growth(child: subprocess.Popen[str]) -> Held:
    first, last = (Held(*held) for held in json.loads(child.communicate()[0]))
    return Held(last.blocks - first.blocks, last.objects - first.objects)


def _held() -> Held:
    gc.collect()
    return Held(sys.getallocatedblocks(), len(gc.get_objects()))


def _instrument() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    import otel_async_sqla_agent

    otel_async_sqla_agent.instrument(
        mode="both",  # all layers at work
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
    )


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
        await connection.exec_driver_sql("CREATE TABLE item (id INTEGER)")
        for number in range(1, STATEMENTS + 1):
            # Not `execute()`: SQLAlchemy would compile each text, which takes long and fills caches of its own.
            await connection.exec_driver_sql(f"DELETE FROM item WHERE id = {number:07}")
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
    print(json.dumps(list(_drop_engines()) if what == "engines" else asyncio.run(_execute_texts())))


if __name__ == "__main__":
    main(*sys.argv[1:])

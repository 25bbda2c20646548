"""
Measure the agent, print one table, and keep it in `results/latest.txt`.

Run as `make bench`. A benchmark is no test: the exit code says nothing about the figures.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import memory, startup, statements
from integration.databases import drop_databases, postgresql_url

RESULTS = Path(__file__).parent / "results" / "latest.txt"
_MARKS = {True: "✓", False: "✗", None: ""}


def main() -> None:
    begin = time.monotonic()
    table = Table("", "median", "quartiles", "target", "", title=_setup(), title_justify="left")
    for column in table.columns[1:4]:
        column.justify = "right"
    for title, rows in (
        ("CPU time per statement, asyncpg on PostgreSQL", statements.rows(postgresql_url())),
        ("Memory", memory.rows()),
        ("CPU time at start-up, fresh interpreters", startup.rows()),
    ):
        print(f"Measuring {title} …", file=sys.stderr)
        table.add_section()
        table.add_row(f"[bold]{title}")
        for row in rows:
            table.add_row(row.name, row.figure, row.spread, row.target, _MARKS[row.met])
    table.caption = f"measured in {time.monotonic() - begin:.0f} s"
    console = Console(record=True, width=120)
    console.print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    console.save_text(str(RESULTS))


def _setup() -> str:
    packages = ("SQLAlchemy", "asyncpg", "opentelemetry-sdk", "opentelemetry-instrumentation-sqlalchemy")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    return f"Python {platform.python_version()}, {versions}, {load}"


if __name__ == "__main__":
    try:
        main()
    finally:
        drop_databases()

"""
Measure what the agent adds to the start of a program, in fresh interpreters.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import Quartiles, Row
from integration.images import AGENT, OPENTELEMETRY, SQLALCHEMY, Image
from integration.processes import ROOT, environ

RUNS = 20
PAIRS = 30  # more: what is measured is small beside the import
STARTS = 100  # the program does nothing, and the differences are tenths of milliseconds
LAUNCHES = 15

_IMPORT = "import otel_async_sqla_agent"
_HOOK = "from otel_async_sqla_agent._boot import activate; activate()"
_SQLALCHEMY = "import sqlalchemy.ext.asyncio"
_TIMED = """
import sys, time
begin = time.process_time_ns()
{code}
print([(time.process_time_ns() - begin) / 1e6, "sqlalchemy" in sys.modules])
"""
_WHOLE = """
{code}
import time
print(time.process_time_ns() / 1e6)
"""
_LAUNCHER = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
_ON = {"OTEL_ASYNC_SQLA_MODE": "auto"}
_NO_EXPORTER = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


class Program(NamedTuple):
    """
    A program that prints the CPU milliseconds of its whole process.
    """

    command: list[str]
    variables: dict[str, str]

    def run(self) -> float:
        milliseconds: float = _run(self.command, self.variables)
        return milliseconds


def rows() -> Iterator[Row]:
    """
    Return CPU time of the agent's parts, and of whole programs with the agent and without it, in turn.
    """
    for name, code, limit in (
        (_IMPORT, _IMPORT, 3),
        ("pre_instrument hook, with its imports", _HOOK, 5),
    ):
        runs = [_run([sys.executable, "-c", _TIMED.format(code=code)], {}) for _ in range(RUNS)]
        yield Quartiles.of([milliseconds for milliseconds, _ in runs]).row(name, ".2f", " ms", limit)
        imported = any(is_imported for _, is_imported in runs)
        yield Row("… imports sqlalchemy", "yes" if imported else "no", target="no", met=not imported)
    bare, armed = (_program(sys.executable, code) for code in (_SQLALCHEMY, f"{_HOOK}; {_SQLALCHEMY}"))
    yield from _compared(f"python -c '{_SQLALCHEMY}'", PAIRS, bare, {"+ armed agent": (armed, 15)})
    with tempfile.TemporaryDirectory() as folder:
        image = Image(Path(folder))
        with image.without_sitecustomize():
            yield from _nothing(image)
            yield from _launched(image)


def _nothing(image: Image) -> Iterator[Row]:
    """
    Return what the files of `preinstall` cost a program that does nothing.
    """
    bare, prepared = (image.venv(name, AGENT).python for name in ("bare", "prepared"))
    _run([prepared, "-m", "otel_async_sqla_agent", "preinstall"], {}, cwd=image.root, answer=False)
    path = {"PYTHONPATH": str(image.exposed)}
    yield from _compared(
        "python -c pass",
        STARTS,
        _program(bare, "pass"),
        {
            "+ inactive .pth": (_program(prepared, "pass"), 0.3),
            "+ armed .pth": (_program(prepared, "pass", **_ON), 3),
            "+ inactive sitecustomize": (_program(bare, "pass", **path), None),
            "+ armed sitecustomize": (_program(bare, "pass", **_ON, **path), None),
        },
    )


def _launched(image: Image) -> Iterator[Row]:
    """
    Return what a program that does nothing costs under the launcher, without the agent and with it.
    """
    programs = []
    for name, more in (("launched", []), ("launched-agent", [AGENT])):
        program = _program(image.venv(name, *SQLALCHEMY, *OPENTELEMETRY, *more).python, "pass", **_NO_EXPORTER)
        programs.append(Program([program.command[0], "-c", _LAUNCHER, *program.command], program.variables))
    runs = [[program.run() for program in programs] for _ in range(LAUNCHES)]
    bare, agent = (Quartiles.of(values) for values in zip(*runs, strict=True))
    yield bare.row("opentelemetry-instrument python -c pass", ".0f", " ms")
    target, met = f"{bare.low:.0f} … {bare.high:.0f} ms", agent.median <= bare.high
    yield agent.row("… with the agent", ".0f", " ms")._replace(target=target, met=met)


def _program(python: str, code: str, **variables: str) -> Program:
    return Program([python, "-c", _WHOLE.format(code=code)], variables)


def _compared(name: str, count: int, bare: Program, others: dict[str, tuple[Program, float | None]]) -> Iterator[Row]:
    """
    Run the programs in turn. Of the others the difference counts, between the least of each: other processes only add.
    """
    runs = [[bare.run(), *(program.run() for program, _ in others.values())] for _ in range(count)]
    yield Quartiles.of([values[0] for values in runs]).row(name, ".1f", " ms")
    least = [min(values) for values in zip(*runs, strict=True)]
    for index, (other, (_, limit)) in enumerate(others.items(), 1):
        row = Quartiles.of([values[index] - values[0] for values in runs]).row(other, "+.2f", " ms", limit)
        more = least[index] - least[0]
        yield row._replace(figure=f"{more:+.2f} ms", met=None if limit is None else more <= limit)


def _run(command: list[str], variables: dict[str, str], cwd: Path = ROOT, *, answer: bool = True) -> Any:
    output = subprocess.run(command, cwd=cwd, env=environ(**variables), stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(output.stdout) if answer else None

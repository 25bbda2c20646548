"""
Measure what a statement costs in each variant: one worker process for each, a round of each in turn.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.results import Quartiles, Row
from integration.processes import ROOT, environ

# The same variant differs from process to process by some percent (hash seed, memory layout), which no number of
# rounds evens out; so there are several sessions, each with processes of its own.
SESSIONS = 8
SESSION_SECONDS = 10  # without its start; some 40 rounds of each variant

_SAMPLED = ["manual sampled", "manual metrics", "agent sampled", "agent metrics", "contrib sampled", "contrib launched"]
_UNSAMPLED = ["manual unsampled", "agent unsampled"]
_MODES = ["agent auto", "agent driver", "agent both", "contrib asyncpg"]
VARIANTS = ["bare", *_SAMPLED, *_UNSAMPLED, *_MODES]

_CONTRIB = f"contrib {version('opentelemetry-instrumentation-sqlalchemy')} on SQLAlchemy {version('sqlalchemy')}"
_NAMES = {
    "manual sampled": "+ hand-written span",
    "manual metrics": "+ the same, and the SDK's record()",
    "agent sampled": "+ agent",
    "agent metrics": "+ agent, with metrics",
    "contrib sampled": f"+ {_CONTRIB}",
    "contrib launched": "+ the same, two spans as under opentelemetry-instrument",
    "manual unsampled": "+ hand-written span, unsampled",
    "agent unsampled": "+ agent, unsampled",
    "agent auto": "+ agent, mode auto",
    "agent driver": "+ agent, mode driver",
    "agent both": "+ agent, mode both (two spans)",
    "contrib asyncpg": f"+ contrib asyncpg {version('opentelemetry-instrumentation-asyncpg')}",
}
_RATIOS = [
    ("agent sampled", "manual sampled", 1.1),
    ("agent unsampled", "manual unsampled", 1.2),
    ("agent sampled", "contrib sampled", None),
    ("agent sampled", "contrib launched", 0.5),  # what it does to an async engine as users run it
    ("agent both", "manual sampled", 2.1),
    ("agent driver", "contrib asyncpg", 0.7),
]

Session = dict[str, list[float]]  # variant to microseconds per statement, in the order of rounds
_CHECKOUT = " checkout"  # behind a variant's name: microseconds per checkout and return
_FETCH = " fetch"  # likewise: per direct call of asyncpg
_MEASURES = ("", _CHECKOUT, _FETCH)


def rows(url: str) -> Iterator[Row]:
    """
    Return CPU time per statement: the bare program's, what each variant adds, and how the additions compare.

    An addition is a variant's round minus the bare program's of the same turn. A ratio is that of the medians of
    all turns; its spread is that of the sessions' ratios.
    """
    sessions = [_session(url) for _ in range(SESSIONS)]
    bare = [value for session in sessions for value in session["bare"]]
    yield Quartiles.of(bare).row(f"bare program ({len(bare):,} rounds of each variant)", ".1f", " µs")
    for variant, name in _NAMES.items():
        added = [value for session in sessions for value in _added(session, variant)]
        yield Quartiles.of(added).row(name, "+.1f", " µs")
    for ours, theirs, limit in _RATIOS:
        overall = _ratio(sessions, ours, theirs)
        spread = Quartiles.of([_ratio([session], ours, theirs) for session in sessions])
        yield spread._replace(median=overall).row(f"{ours} / {theirs}", ".2f", "", limit)
    for ours, name, limit in (
        ("agent driver", "asyncpg's fetch() itself: agent driver / contrib asyncpg", 0.7),
        ("manual sampled", "… the SDK's start, current and end alone / contrib asyncpg", None),
    ):
        direct = [_ratio([session], ours + _FETCH, "contrib asyncpg" + _FETCH) for session in sessions]
        overall = _ratio(sessions, ours + _FETCH, "contrib asyncpg" + _FETCH)
        yield Quartiles.of(direct)._replace(median=overall).row(name, ".2f", "", limit)
    yield _engine_and_auto(sessions)
    for ours, name, limit in (
        ("agent", "metrics on top of agent sampled / manual sampled", 0.35),
        ("manual", "… the SDK's record() alone, five attributes", None),
    ):
        spread = Quartiles.of([_metrics_ratio([session], ours) for session in sessions])
        yield spread._replace(median=_metrics_ratio(sessions, ours)).row(name, ".2f", "", limit)
    for variant, name, limit in (
        ("agent sampled", _NAMES["agent sampled"], 10),
        ("agent metrics", _NAMES["agent metrics"], 10),
        ("manual metrics", "… the SDK's record() alone, twice", None),
    ):
        checkouts = [value for session in sessions for value in _added(session, variant + _CHECKOUT)]
        yield Quartiles.of(checkouts).row(f"checkout and return: {name}", "+.1f", " µs", limit)


def _engine_and_auto(sessions: list[Session]) -> Row:
    """
    Tell whether mode `auto` costs what `engine` does, as far as the sessions can tell them apart.
    """
    engine, auto = (
        Quartiles.of([median(_added(session, variant)) for session in sessions])
        for variant in ("agent sampled", "agent auto")
    )
    return Row(
        "mode auto, against the sessions' quartiles of mode engine",
        f"{auto.median:+.1f} µs",
        f"{engine.low:+.1f} … {engine.high:+.1f}",
        "within",
        auto.median <= engine.high,
    )


def _added(session: Session, variant: str, to: str = "") -> list[float]:
    base = to or "bare" + next((measure for measure in _MEASURES[1:] if variant.endswith(measure)), "")
    return [value - bare for value, bare in zip(session[variant], session[base], strict=True)]


def _metrics_ratio(sessions: list[Session], ours: str) -> float:
    on_top = median(value for each in sessions for value in _added(each, f"{ours} metrics", to=f"{ours} sampled"))
    return on_top / median(value for each in sessions for value in _added(each, "manual sampled"))


def _ratio(sessions: list[Session], ours: str, theirs: str) -> float:
    medians = [median(value for session in sessions for value in _added(session, each)) for each in (ours, theirs)]
    return medians[0] / medians[1]


def _session(url: str) -> Session:
    with ExitStack() as stack:
        agent = stack.enter_context(_start(url, "agent sampled"))
        # The hand-written spans have the agent's name and attributes.
        (span,) = json.loads(_answer(agent))
        others = {name: stack.enter_context(_start(url, name, span)) for name in VARIANTS if name != "agent sampled"}
        for worker in others.values():
            _answer(worker)
        workers = {"agent sampled": agent, **others}
        session: Session = {name + measure: [] for name in VARIANTS for measure in _MEASURES}
        end = time.monotonic() + SESSION_SECONDS
        while time.monotonic() < end:
            for name in random.sample(VARIANTS, len(VARIANTS)):
                for measure, microseconds in zip(_MEASURES, _round(workers[name]), strict=True):
                    session[name + measure].append(microseconds)
        return session


def _start(url: str, variant: str, span: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.worker", url, variant, json.dumps(span)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _answer(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def _round(worker: subprocess.Popen[str]) -> list[float]:
    assert worker.stdin is not None
    worker.stdin.write("round\n")
    return [float(nanoseconds) / 1e3 for nanoseconds in _answer(worker).split()]

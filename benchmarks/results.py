"""
Say what was measured, against its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles
from typing import NamedTuple


class Row(NamedTuple):
    """
    One figure.
    """

    name: str
    figure: str
    spread: str = ""
    target: str = ""
    met: bool | None = None  # None where there is no target


class Quartiles(NamedTuple):
    """
    A median, and the half of the values around it.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        return cls(*quantiles(values, n=4))

    def row(self, name: str, form: str, unit: str = "", limit: float | None = None) -> Row:
        """
        Return the row of these values; the median is what must keep the limit.
        """
        low, middle, high = (f"{value:{form}}" for value in self)
        target = "" if limit is None else f"≤ {limit:g}{unit}"
        met = None if limit is None else self.median <= limit
        return Row(name, f"{middle}{unit}", f"{low} … {high}", target, met)

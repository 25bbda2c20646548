"""
Template strings, as psycopg takes them: Python's own, which came with 3.14, or stand-ins of the documented shape.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from psycopg import _compat

Interpolation: Any
Template: Any

if sys.version_info >= (3, 14):
    from string.templatelib import Interpolation, Template
else:
    Interpolation = _compat.Interpolation

    class Template(_compat.Template):
        """
        Strings and interpolations in turn, beginning and ending with a string, which may be empty.

        psycopg's own stand-in is a placeholder that cannot be made; one that is derived from it goes the same way.
        """

        def __new__(cls, *_args: Any) -> Any:
            return object.__new__(cls)

        def __init__(self, *args: Any) -> None:
            strings, interpolations = [""], []
            for arg in args:
                if isinstance(arg, str):
                    strings[-1] += arg
                else:
                    interpolations.append(arg)
                    strings.append("")
            self.strings, self.interpolations = tuple(strings), tuple(interpolations)

        def __iter__(self) -> Iterator[Any]:
            for number, string in enumerate(self.strings):
                if string:
                    yield string
                yield from self.interpolations[number : number + 1]


def template(*args: Any) -> Any:
    """
    Return a template string of strings and of interpolations, each a tuple of its value and its format.
    """
    items = [arg if isinstance(arg, str) else Interpolation(arg[0], "expression", None, arg[1]) for arg in args]
    return Template(*items)

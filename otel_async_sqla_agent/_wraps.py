"""
What the table of the drivers is made of: which of a driver's functions are calls, and what each call says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Function = Callable[..., Any]
    # Puts a bracket around a function, as its row says.
    Bracketed = Callable[["Wrap", Function], Function]


class Call(NamedTuple):
    """
    What a call says, read from its own arguments.
    """

    connection: Any
    """
    The driver's.
    """

    query: Any
    """
    The SQL as the application has given it; what is neither text nor bytes is not for the server.
    """

    parameterised: bool = False
    """
    Whether the values are apart from the text.
    """

    batch_size: int = 0
    """
    How many parameter sets it has, if that is known and it can have several.
    """

    is_preparation: bool = False
    """
    Whether it executes nothing yet: it makes a span only if it fails.
    """

    values: Any = None
    """
    The parameters of a single execution, by name or by position.
    """


@dataclass(frozen=True, slots=True)  # faster to read from than a tuple with names
class Wrap:
    """
    One function of a driver.
    """

    owner: Any
    """
    The class or module that has it.
    """

    name: str
    kind: int = 0
    """
    Which brackets it nests in: STATEMENT, TRANSACTION, CONNECT; 0 for none.
    """

    read: Function | None = None
    """
    Read a call from its arguments, or the database to be connected to; None where a call is nothing but a round trip of
    a call before, which contrib makes spans of.
    """

    connection: Function = lambda instance: instance
    """
    Find the connection, by what the function is a method of.
    """

    bare: Callable[[Function], Function] | None = None
    """
    Keep contrib out of the function, where it does not stand in front of the function itself.
    """

    replace: Callable[[Function, Bracketed], Function] | None = None
    """
    Make the replacement, where it is not the function itself that is a call.
    """


class Driver(NamedTuple):
    """
    One driver.
    """

    dialect: str
    """
    SQLAlchemy's name of its database.
    """

    wraps: Callable[[ModuleType], list[Wrap]]
    """
    List the functions of the imported driver; raises AttributeError where its shape is not known.
    """


def count(sets: Any) -> int:
    """
    Count parameter sets; an iterator is the driver's to consume.
    """
    return len(sets) if hasattr(sets, "__len__") else 0


def has_values(parameters: Any) -> bool:
    """
    Tell whether a statement has parameters: a collection with something in it, or a single value.
    """
    return count(parameters) > 0 if hasattr(parameters, "__len__") else parameters is not None

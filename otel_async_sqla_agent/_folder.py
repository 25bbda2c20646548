"""
Decide what becomes visible of the folder that `preinstall --for-venvs` has prepared.

`opentelemetry` is a namespace package: the folder's SDK beside the application's older API dies with an ImportError.
So at first the agent's own package is visible alone, and its dependencies only once it is known that they fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import Distribution
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXPOSED = "pythonpath"
"""
The folder inside of the folder, in which the agent's package stands alone.
"""
_AGENT = "otel-async-sqla-agent"
_SDK = "opentelemetry-sdk"


def make_dependencies_visible() -> str | None:
    """
    Let an application without an OpenTelemetry SDK of its own have the folder's, at the end of `sys.path`.

    Nothing is done where the agent stands anywhere else: an installer has seen to the versions there.

    Returns:
        What does not fit, for people; then nothing has become visible. None if the agent can work.
    """
    exposed = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.basename(exposed) != EXPOSED:
        return None
    folder = os.path.dirname(exposed)
    application = [entry for entry in sys.path if os.path.abspath(entry) not in (exposed, folder)]
    own = _version(_SDK, application) is not None
    borrowed = _borrow("packaging", folder)
    try:
        misfits = _misfits_of_its_own(folder, application) if own else _misfits(folder, application)
        mismatch = next(misfits, None)
    finally:
        if borrowed:
            _give_back("packaging")
    if mismatch is None and own:
        _borrow("wrapt", folder)  # which the SDK does without
    elif mismatch is None and folder not in sys.path:
        sys.path.append(folder)
    return mismatch


def _misfits_of_its_own(folder: str, application: list[str]) -> Iterator[str]:
    """
    Compare what the agent requires with the application's own OpenTelemetry, which has all that is needed.
    """
    for agent in Distribution.discover(name=_AGENT, path=[folder]):
        for requirement in _requirements(agent, extras=[""]):
            yield from _misfit(requirement, agent, application)


def _misfits(folder: str, application: list[str]) -> Iterator[str]:
    """
    Compare what the folder's distributions require of each other with what the application has of them.
    """
    distributions = sorted(Distribution.discover(path=[folder]), key=lambda item: (_name(item) != _AGENT, _name(item)))
    names = {_canonical(_name(distribution)) for distribution in distributions}
    for distribution in distributions:
        extras = distribution.metadata.get_all("Provides-Extra", [])
        for requirement in _requirements(distribution, extras=["", *extras]):
            if _canonical(requirement.name) in names:
                yield from _misfit(requirement, distribution, application)


def _misfit(requirement: Requirement, wanted_by: Distribution, application: list[str]) -> Iterator[str]:
    found = _version(requirement.name, application)
    if found is not None and not requirement.specifier.contains(found, prereleases=True):
        yield (
            f"the application has {requirement.name} {found}, but {_name(wanted_by)} {wanted_by.version} wants "
            f"{requirement.name}{requirement.specifier}"
        )


def _requirements(distribution: Distribution, extras: Sequence[str]) -> Iterator[Requirement]:
    from packaging.requirements import Requirement

    for line in distribution.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _version(name: str, path: list[str]) -> str | None:
    # The first one found is the one that is imported.
    found = next(iter(Distribution.discover(name=name, path=path)), None)
    return None if found is None else found.version


def _name(distribution: Distribution) -> str:
    return distribution.metadata["Name"]


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _borrow(package: str, folder: str) -> bool:
    """
    Load a package of the folder's where the application has none, with nothing else of the folder visible.
    """
    if find_spec(package) is not None:
        return False
    spec = PathFinder.find_spec(package, [folder])
    if spec is None or spec.loader is None:
        return False
    sys.modules[package] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return True


def _give_back(package: str) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            del sys.modules[name]

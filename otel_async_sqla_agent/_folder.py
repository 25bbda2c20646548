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
_API = "opentelemetry-api"
# Without these there are no spans; an application's own OpenTelemetry may lack them.
_NEEDED = (_API, "opentelemetry-semantic-conventions", "wrapt")


def make_dependencies_visible() -> str | None:
    """
    Let an application without OpenTelemetry of its own have the folder's, at the end of `sys.path`.

    Nothing is done where the agent stands anywhere else: an installer has seen to the versions there.

    Returns:
        What does not fit, for people; then nothing has become visible. None if the agent can work.
    """
    exposed = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.basename(exposed) != EXPOSED:
        return None
    folder = os.path.dirname(exposed)
    application = [entry for entry in sys.path if os.path.abspath(entry) not in (exposed, folder)]
    borrowed = _borrow_packaging(folder)
    try:
        own = _version(_API, application) is not None
        mismatch = next(_misfits_of_its_own(exposed, application) if own else _misfits(folder, application), None)
        visible = not own and mismatch is None
    finally:
        if borrowed and not visible:
            _give_packaging_back()
    if visible and folder not in sys.path:
        sys.path.append(folder)
    return mismatch


def _misfits_of_its_own(exposed: str, application: list[str]) -> Iterator[str]:
    """
    Compare what the agent requires with the application's own OpenTelemetry.
    """
    for agent in Distribution.discover(name=_AGENT, path=[exposed]):
        for requirement in _requirements(agent, extras=[""]):
            found = _version(requirement.name, application)
            if found is None and requirement.name in _NEEDED:
                yield f"the application has OpenTelemetry of its own, but no {requirement}, which {_title(agent)} wants"
            elif found is not None and not requirement.specifier.contains(found, prereleases=True):
                yield _misfit(found, requirement, agent)


def _misfits(folder: str, application: list[str]) -> Iterator[str]:
    """
    Compare what the folder's distributions require of each other with what the application has of them.
    """
    distributions = list(Distribution.discover(path=[folder]))
    names = {_canonical(distribution.metadata["Name"]) for distribution in distributions}
    for distribution in distributions:
        extras = distribution.metadata.get_all("Provides-Extra", [])
        for requirement in _requirements(distribution, extras=["", *extras]):
            if _canonical(requirement.name) not in names:
                continue
            found = _version(requirement.name, application)
            if found is not None and not requirement.specifier.contains(found, prereleases=True):
                yield _misfit(found, requirement, distribution)


def _misfit(found: str, requirement: Requirement, wanted_by: Distribution) -> str:
    wanted = f"{requirement.name}{requirement.specifier}"
    return f"the application has {requirement.name} {found}, but {_title(wanted_by)} wants {wanted}"


def _title(distribution: Distribution) -> str:
    return f"{distribution.metadata['Name']} {distribution.version}"


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


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def _borrow_packaging(folder: str) -> bool:
    """
    Load the folder's `packaging` where the application has none, with nothing else of the folder visible.
    """
    if find_spec("packaging") is not None:
        return False
    spec = PathFinder.find_spec("packaging", [folder])
    if spec is None or spec.loader is None:
        return False
    sys.modules["packaging"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return True


def _give_packaging_back() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "packaging":
            del sys.modules[name]

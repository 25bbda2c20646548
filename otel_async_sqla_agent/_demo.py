"""
Build the command that runs a program under `opentelemetry-instrument` with the waterfall exporter.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class DemoError(Exception):
    """
    Say why the demo can't run, and what helps.
    """


class Demo(NamedTuple):
    """
    What the demo runs.
    """

    variables: dict[str, str]
    """
    The environment variables that it sets in addition to the user's.
    """
    arguments: list[str]

    def __str__(self) -> str:
        """
        Return the command as one types it into a shell.
        """
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


def build_demo(program: str, arguments: Sequence[str], environ: Mapping[str, str]) -> Demo:
    """
    Build the demo of a program.

    Args:
        program: The path of a Python file.
        arguments: What it gets as `sys.argv[1:]`.
        environ: The user's environment, whose variables win over the demo's.

    Raises:
        DemoError: The file or one of the extras is missing.
    """
    if not Path(program).is_file():
        raise DemoError(f"there is no file {program}")
    launcher = _launcher()
    if launcher is None or not _has_distro() or find_spec("rich") is None:
        raise DemoError("the demo needs two extras: pip install 'otel-async-sqla-agent[cli,distro]'")
    return Demo(
        variables={name: value for name, value in _defaults(program).items() if name not in environ},
        arguments=[_short(launcher), _short(sys.executable), program, *arguments],
    )


def _defaults(program: str) -> dict[str, str]:
    return {
        "OTEL_SERVICE_NAME": Path(program).stem,
        "OTEL_TRACES_EXPORTER": "waterfall",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SEMCONV_STABILITY_OPT_IN": "database",
    }


def _launcher() -> str | None:
    """
    Find `opentelemetry-instrument`, first beside this interpreter: its environment may not be activated.
    """
    name = "opentelemetry-instrument"
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _has_distro() -> bool:
    """
    Tell whether some distro, OpenTelemetry's or a vendor's, would configure the SDK.
    """
    return bool(entry_points(group="opentelemetry_configurator"))


def _short(executable: str) -> str:
    """
    Write an executable as one would type it: its name if it is on the path, else from here if it is below.
    """
    path = Path(executable)
    if shutil.which(path.name) == executable:
        return path.name
    return str(path.relative_to(Path.cwd())) if Path.cwd() in path.parent.parents else executable

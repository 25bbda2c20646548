"""
Be the console script `otel-async-sqla-agent`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import _preinstall
from ._demo import Demo, DemoError, build_demo
from ._preinstall import PreinstallError


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a subcommand.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return _COMMANDS[options.command](options)
    except (DemoError, PreinstallError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="otel-async-sqla-agent",
        description="Zero-code OpenTelemetry spans for SQLAlchemy's asyncio extension.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run a program and draw its spans",
        description="Run a Python program, unmodified, under opentelemetry-instrument and print its trace "
        "as a waterfall. OTEL_ variables that are already set stay as they are.",
    )
    demo.add_argument("program", metavar="PROGRAM", help="a Python file")
    demo.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="what PROGRAM is given")
    preinstall = commands.add_parser(
        "preinstall",
        help="write the start-up hook into this image",
        description="Write the files by which every Python process of this environment starts the agent, without "
        "opentelemetry-instrument and without a change of the command, where OTEL_ASYNC_SQLA_MODE is set.",
    )
    preinstall.add_argument(
        "--for-venvs",
        action="store_true",
        help="for applications in a venv that is made later: the agent stands in a folder of its own, and the hook "
        "goes into the standard library's",
    )
    preinstall.add_argument("--uninstall", action="store_true", help="remove the files")
    preinstall.add_argument("--dry-run", action="store_true", help="only say what would be done")
    return parser


def _become(demo: Demo) -> NoReturn:
    """
    Run the demo in place of this process, so that signals and the exit code are the program's.
    """
    os.execvpe(demo.arguments[0], demo.arguments, {**os.environ, **demo.variables})  # noqa: S606


def _demo(options: argparse.Namespace) -> int:
    demo = build_demo(options.program, options.arguments, os.environ)
    _print_command(demo)
    _become(demo)


def _preinstall_files(options: argparse.Namespace) -> int:
    files = _preinstall.files_for_venvs() if options.for_venvs else _preinstall.files_of_the_environment()
    change = _preinstall.remove if options.uninstall else _preinstall.write
    for line in change(files, dry_run=options.dry_run):
        sys.stdout.write(f"{line}\n")
    return 0


def _print_command(demo: Demo) -> None:
    # An extra, of which `build_demo` has made sure.
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble(("$ ", "dim"), (str(demo), "bold")), soft_wrap=True)


_COMMANDS = {"demo": _demo, "preinstall": _preinstall_files}

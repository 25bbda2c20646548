"""
Be the console script `otel-async-sqla-agent`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ._demo import Demo, DemoError, build_demo


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
    return _demo(options)


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
    return parser


def _become(demo: Demo) -> NoReturn:
    """
    Run the demo in place of this process, so that signals and the exit code are the program's.
    """
    os.execvpe(demo.arguments[0], demo.arguments, {**os.environ, **demo.variables})  # noqa: S606


def _demo(options: argparse.Namespace) -> int:
    try:
        demo = build_demo(options.program, options.arguments, os.environ)
    except DemoError as error:
        sys.stderr.write(f"otel-async-sqla-agent: {error}\n")
        return 2
    _print_command(demo)
    _become(demo)


def _print_command(demo: Demo) -> None:
    # An extra, of which `build_demo` has made sure.
    from rich.console import Console
    from rich.text import Text

    Console().print(Text.assemble(("$ ", "dim"), (str(demo), "bold")), soft_wrap=True)

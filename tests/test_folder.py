"""
What becomes visible of the folder that `preinstall --for-venvs` has prepared.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from otel_async_sqla_agent import _folder
from otel_async_sqla_agent._folder import make_dependencies_visible

AGENT = {
    "otel-async-sqla-agent 2.0": [
        "opentelemetry-api>=1.33",
        "opentelemetry-semantic-conventions>=0.54b0",
        "wrapt>=1.14",
        "importlib-metadata>=6",
        "opentelemetry-distro>=0.54b0; extra == 'distro'",
        "rich>=13; extra == 'cli'",
    ]
}
FOLDER = {
    **AGENT,
    "opentelemetry-api 1.45.1": ["typing-extensions>=4.5"],
    "opentelemetry-sdk 1.45.1": ["opentelemetry-api==1.45.1", "wrapt<3; python_version < '3'"],
    "opentelemetry-semantic-conventions 0.66b1": ["opentelemetry-api==1.45.1"],
    "opentelemetry_proto 1.45.1": ["protobuf<8.0,>=5.0"],
    "protobuf 7.0": [],
    "transport 1.0": ["Requests~=2.7; extra == 'requests'", "rich>=13; extra == 'pretty'"],
    "requests 2.34": [],
    "typing_extensions 4.16": [],
    "wrapt 2.5": [],
}
OWN = {
    "opentelemetry-api 1.46": [],
    "opentelemetry-sdk 1.46": [],
    "opentelemetry-semantic-conventions 0.67b0": [],
    "wrapt 1.17": [],
}


def distributions(folder: Path, described: dict[str, list[str]]) -> None:
    for title, requirements in described.items():
        name, version = title.split()
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info/METADATA"
        metadata.parent.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in ("distro", "cli", "requests", "pretty")]
        metadata.write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requirements)]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A folder with the agent exposed, and an application that has nothing of it.
    """
    folder = tmp_path / "folder"
    distributions(folder, FOLDER)
    distributions(folder / "pythonpath", AGENT)
    module = folder / "pythonpath/otel_async_sqla_agent/_folder.py"
    monkeypatch.setattr(_folder, "__file__", str(module))
    # The tests' own environment must not be taken for the application's.
    import packaging.requirements
    import packaging.utils

    assert packaging.requirements
    monkeypatch.setattr(sys, "path", [str(folder / "pythonpath"), str(tmp_path / "application")])
    return folder


@pytest.mark.parametrize(
    "application",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"protobuf 5.29": [], "typing_extensions 4.5": [], "wrapt 1.14": []}, id="what-fits"),
        pytest.param({"rich 12": []}, id="what-the-folder-does-not-have"),
        pytest.param({"opentelemetry-api 1.45.1": []}, id="an-api-that-fits"),
    ],
)
def test_application_without_an_sdk(application: dict[str, list[str]], folder: Path, tmp_path: Path) -> None:
    """
    It gets the whole folder, behind all that is its own.
    """
    distributions(tmp_path / "application", application)
    assert None is make_dependencies_visible()
    assert [str(folder / "pythonpath"), str(tmp_path / "application"), str(folder)] == sys.path
    assert None is make_dependencies_visible()
    assert 1 == sys.path.count(str(folder))


@pytest.mark.parametrize(
    ("application", "mismatch"),
    [
        pytest.param(
            {"protobuf 4.25.9": []},
            "the application has protobuf 4.25.9, but opentelemetry_proto 1.45.1 wants protobuf<8.0,>=5.0",
            id="protobuf",
        ),
        pytest.param(
            {"typing_extensions 4.4": []},
            "the application has typing-extensions 4.4, but opentelemetry-api 1.45.1 wants typing-extensions>=4.5",
            id="other-spelling",
        ),
        pytest.param(
            {"wrapt 1.13": []},
            "the application has wrapt 1.13, but otel-async-sqla-agent 2.0 wants wrapt>=1.14",
            id="wrapt",
        ),
        pytest.param(
            {"requests 1.0": []},
            "the application has Requests 1.0, but transport 1.0 wants Requests~=2.7",
            id="of-an-extra",
        ),
        pytest.param(
            {**OWN, "opentelemetry-api 1.27.0": []},
            "the application has opentelemetry-api 1.27.0, but otel-async-sqla-agent 2.0 wants opentelemetry-api>=1.33",
            id="own-api",
        ),
        pytest.param(
            {"opentelemetry-api 1.27.0": []},
            "the application has opentelemetry-api 1.27.0, but otel-async-sqla-agent 2.0 wants opentelemetry-api>=1.33",
            id="api-alone",
        ),
        pytest.param(
            {"opentelemetry-api 1.46": []},
            "the application has opentelemetry-api 1.46, but opentelemetry-sdk 1.45.1 wants opentelemetry-api==1.45.1",
            id="later-api-alone",
        ),
        pytest.param(
            {**OWN, "importlib_metadata 5.0": []},
            "the application has importlib-metadata 5.0, but otel-async-sqla-agent 2.0 wants importlib-metadata>=6",
            id="own-importlib-metadata",
        ),
    ],
)
def test_versions_that_do_not_fit(
    application: dict[str, list[str]], mismatch: str, folder: Path, tmp_path: Path
) -> None:
    """
    One that does not fit is enough for nothing to become visible.
    """
    wanted = {title.split()[0]: (title, lines) for title, lines in application.items()}  # the later version wins
    distributions(tmp_path / "application", dict(wanted.values()))
    assert mismatch == make_dependencies_visible()
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="least"),
        pytest.param({"protobuf 4.25": [], "rich 12": []}, id="what-is-none-of-ours"),
    ],
)
def test_application_with_an_sdk(more: dict[str, list[str]], folder: Path, tmp_path: Path) -> None:
    """
    It gets nothing but the agent, and its own versions need not fit the folder's.
    """
    distributions(tmp_path / "application", {**OWN, **more})
    assert None is make_dependencies_visible()
    assert str(folder) not in sys.path


def test_packaging_is_borrowed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Versions are compared by the folder's `packaging` where the application has none, and it does not stay.
    """
    import packaging

    source = Path(packaging.__file__).parent
    (folder / "packaging").symlink_to(source)
    for name in [name for name in sys.modules if name.split(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    distributions(tmp_path / "application", {"protobuf 4.25": []})
    mismatch = make_dependencies_visible()
    assert mismatch is not None
    assert "protobuf 4.25" in mismatch
    assert [] == [name for name in sys.modules if name.split(".")[0] == "packaging"]


def test_wrapt_is_lent(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An SDK does without wrapt, so an application that has one gets ours, and nothing else.
    """
    (folder / "wrapt.py").write_text("")
    (folder / "other.py").write_text("")
    monkeypatch.setitem(sys.modules, "wrapt", sys)  # which it puts back or takes away again
    del sys.modules["wrapt"]
    distributions(tmp_path / "application", {name: [] for name in OWN if "wrapt" not in name})
    assert None is make_dependencies_visible()
    assert str(folder / "wrapt.py") == sys.modules.pop("wrapt").__file__
    assert None is find_spec("other")
    distributions(tmp_path / "application", {"importlib-metadata 5.0": []})
    assert None is not make_dependencies_visible()
    assert "wrapt" not in sys.modules


def test_installed_ordinarily(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where pip has seen to the versions, nothing is compared.
    """
    monkeypatch.setattr(_folder, "_version", None)
    path = list(sys.path)
    assert None is make_dependencies_visible()
    assert path == sys.path

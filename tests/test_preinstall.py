"""
Which files `preinstall` writes, and where it refuses. What they do is tested in integration/test_images.py.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

from otel_async_sqla_agent import _preinstall, cli


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    Let the agent stand in a folder, as pip leaves it there.
    """
    (folder / "otel_async_sqla_agent").mkdir(parents=True)
    metadata = folder / "otel_async_sqla_agent-2.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: otel-async-sqla-agent\nVersion: 2.0\n")
    (metadata.parent / "entry_points.txt").write_text("[opentelemetry_pre_instrument]\nasync_sqla = somewhere\n")
    monkeypatch.setattr(_preinstall, "__file__", str(folder / "otel_async_sqla_agent/_preinstall.py"))
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """
    A standard library's folder, and none of this environment's site-packages.
    """
    folder = tmp_path / "lib/python"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder) if name == "stdlib" else None)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(folder / "site-packages")])
    return folder


@pytest.fixture
def site_packages(stdlib: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return installed(stdlib / "site-packages", monkeypatch)


@pytest.fixture
def folder(stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return installed(tmp_path / "opt/agent", monkeypatch)


NAMES = ["_otel_async_sqla_start.py", "otel_async_sqla_agent.pth", "otel_async_sqla_agent.start"]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_environment(site_packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    `.pth` and `.start` have the same stem, every file is printed, and a second run changes nothing.
    """
    before = contents(site_packages)
    assert 0 == cli.main(["preinstall"])
    assert (capsys.readouterr().out.splitlines()) == [f"wrote {site_packages / name}" for name in NAMES]
    written = contents(site_packages)
    assert {*NAMES} == {*written} - {*before}
    assert 0 == cli.main(["preinstall"])
    assert (capsys.readouterr().out.splitlines()) == [f"unchanged {site_packages / name}" for name in NAMES]
    assert written == contents(site_packages)


def test_for_venvs(folder: Path, stdlib: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    One file goes to the standard library; the folder for PYTHONPATH has the agent's package and metadata alone.
    """
    before = contents(folder)
    assert 0 == cli.main(["preinstall", "--for-venvs"])
    exposed = folder / "pythonpath"
    places = [
        exposed / "otel_async_sqla_agent",
        exposed / "otel_async_sqla_agent.dist-info/METADATA",
        exposed / "otel_async_sqla_agent.dist-info/entry_points.txt",
        exposed / "sitecustomize.py",
        stdlib / "sitecustomize.py",
    ]
    assert (capsys.readouterr().out.splitlines()) == [f"wrote {place}" for place in places]
    assert set(before) == set(contents(folder)) - {str(place.relative_to(folder)) for place in places[:4]}
    assert "../otel_async_sqla_agent" == os.readlink(places[0])
    [agent] = distributions(path=[str(exposed)])
    assert ("otel-async-sqla-agent", "2.0") == (agent.metadata["Name"], agent.version)
    assert ['sqlalchemy>=1.4; extra == "instruments"'] == agent.requires
    assert ["async_sqla"] == [entry_point.name for entry_point in agent.entry_points]
    assert f"FOLDER = {str(exposed)!r}" in places[4].read_text()
    written = contents(folder)
    assert 0 == cli.main(["preinstall", "--for-venvs"])
    assert (capsys.readouterr().out.splitlines()) == [f"unchanged {place}" for place in places]
    assert written == contents(folder)


@pytest.mark.parametrize("option", [[], ["--for-venvs"]], ids=["environment", "for-venvs"])
def test_uninstall(
    option: list[str], folder: Path, stdlib: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    `--uninstall` removes what was written and says so; a second time there is nothing left to say.
    """
    if not option:
        installed(stdlib / "site-packages", monkeypatch)
    before = contents(stdlib), contents(folder)
    cli.main(["preinstall", *option])
    written = capsys.readouterr().out.splitlines()
    assert 0 == cli.main(["preinstall", *option, "--uninstall"])
    assert [line.replace("wrote", "removed") for line in reversed(written)] == capsys.readouterr().out.splitlines()
    assert before == (contents(stdlib), contents(folder))
    assert not (folder / "pythonpath").exists()
    assert 0 == cli.main(["preinstall", *option, "--uninstall"])
    assert ("", "") == capsys.readouterr()


def test_dry_run(site_packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    `--dry-run` says what would be done, and does nothing.
    """
    before = contents(site_packages)
    assert 0 == cli.main(["preinstall", "--dry-run"])
    assert (capsys.readouterr().out.splitlines()) == [f"would write {site_packages / name}" for name in NAMES]
    assert before == contents(site_packages)
    cli.main(["preinstall"])
    written = contents(site_packages)
    capsys.readouterr()
    assert 0 == cli.main(["preinstall", "--dry-run", "--uninstall"])
    assert [f"would remove {site_packages / name}" for name in reversed(NAMES)] == capsys.readouterr().out.splitlines()
    assert written == contents(site_packages)


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """
    Return what `preinstall` says when it refuses.
    """
    assert 2 == cli.main(["preinstall", *options])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("otel-async-sqla-agent: ")
    return err


@pytest.mark.parametrize(
    ("option", "place"),
    [
        pytest.param([], "site-packages/otel_async_sqla_agent.pth", id="pth"),
        pytest.param([], "site-packages/otel_async_sqla_agent.start", id="start"),
        pytest.param(["--for-venvs"], "sitecustomize.py", id="sitecustomize"),
        pytest.param(["--for-venvs"], "sitecustomize.py/__init__.py", id="folder"),
        pytest.param(["--for-venvs"], "../../opt/agent/pythonpath/sitecustomize.py", id="pythonpath"),
        pytest.param(["--for-venvs"], "../../opt/agent/pythonpath/otel_async_sqla_agent/mine", id="link"),
    ],
)
def test_what_is_not_ours(
    option: list[str],
    place: str,
    folder: Path,
    stdlib: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """
    A file of somebody else's is neither replaced nor removed, and then nothing is written at all.
    """
    if not option:
        installed(stdlib / "site-packages", monkeypatch)
    file = stdlib / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    before = contents(stdlib), contents(folder)
    assert "is not ours and stays as it is; remove it, or move it into" in refused(capsys, *option)
    assert before == (contents(stdlib), contents(folder))
    assert 0 == cli.main(["preinstall", *option, "--uninstall"])
    assert ", which is not ours" in capsys.readouterr().out
    assert before == (contents(stdlib), contents(folder))


def test_our_earlier_files_are_replaced(folder: Path, stdlib: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    What an earlier version, or another folder, has left is ours.
    """
    cli.main(["preinstall", "--for-venvs"])
    current = contents(stdlib), contents(folder)
    file, metadata = stdlib / "sitecustomize.py", folder / "pythonpath/otel_async_sqla_agent.dist-info/METADATA"
    file.write_text(file.read_text().splitlines()[0] + "\nan earlier version's")
    metadata.write_text(metadata.read_text().replace("2.0", "1.0"))
    package = folder / "pythonpath/otel_async_sqla_agent"
    package.unlink()
    package.symlink_to("/elsewhere")
    capsys.readouterr()
    assert 0 == cli.main(["preinstall", "--for-venvs"])
    assert [f"wrote {package}", f"wrote {metadata}", f"wrote {file}"] == [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")
    ]
    assert current == (contents(stdlib), contents(folder))


@pytest.mark.parametrize("name", ["site-packages", "dist-packages", "of-another-name"])
def test_for_venvs_out_of_site_packages(
    name: str, stdlib: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Every package beside the agent would become visible to the venvs, so the agent must stand alone.
    """
    installed(stdlib / name, monkeypatch)
    if name == "of-another-name":
        monkeypatch.setattr(site, "getsitepackages", lambda: [str(stdlib / name)])
    message = refused(capsys, "--for-venvs")
    assert f"the agent stands in {stdlib / name}, all of which would become visible" in message
    assert "pip install --target /opt/otel-async-sqla 'otel-async-sqla-agent[distro]'" in message
    assert not (stdlib / "sitecustomize.py").exists()


def test_for_venvs_out_of_a_checkout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A folder that pip has not made has no dependencies in it.
    """
    shutil.rmtree(folder / "otel_async_sqla_agent-2.0.dist-info")
    assert f"the agent stands in {folder}, all of" in refused(capsys, "--for-venvs")


def test_environment_without_the_agent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Files in a site-packages that does not have the agent would do nothing.
    """
    message = refused(capsys)
    assert f"the agent stands in {folder}, which is no site-packages folder of {sys.executable}" in message
    assert "use --for-venvs" in message


def test_no_permission(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Where it may not write, it says who may.
    """

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", denied)
    assert (
        f"{site_packages / NAMES[0]} can't be changed: Permission denied; run this as the user who owns "
        f"{site_packages}, in a Dockerfile before USER"
    ) in refused(capsys)

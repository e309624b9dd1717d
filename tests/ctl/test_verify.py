"""``verify``: unit files without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ctl.test_main import call

GOOD = '[unit]\ndescription = "fine"\n'
BAD = "[cpu]\nvcpu = 2\n"


def test_right_files_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files without an error: no output, code 0."""
    (tmp_path / "web.toml").write_text(GOOD)
    assert call(capsys, "verify", str(tmp_path / "web.toml")) == call(capsys, "verify", str(tmp_path))
    result = call(capsys, "verify", str(tmp_path))
    assert (result.code, result.out, result.err) == (0, "", "")


def test_every_error_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All errors of all files, each as ``file:line: key: message`` with a suggestion, code 1."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(BAD)
    result = call(capsys, "verify", str(tmp_path))
    assert (result.code, result.out) == (1, "")
    lines = result.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{tmp_path}/{name}.toml:2" for name in ("a", "b")]
    assert all("vcpus" in line for line in lines)
    document = json.loads(call(capsys, "verify", str(tmp_path), "-o", "json").out)
    assert [(found["line"], found["key"]) for found in document["diagnostics"]] == [(2, "cpu.vcpu")] * 2


def test_a_directory_stands_for_its_dropins_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a directory holds is checked as the daemon would read it, drop-ins included."""
    (tmp_path / "web.toml.d").mkdir()
    (tmp_path / "web.toml.d/x.toml").write_text(BAD)
    result = call(capsys, "verify", str(tmp_path))
    assert result.code == 1
    assert result.err.startswith(f"{tmp_path}/web.toml.d/x.toml:2: cpu.vcpu: ")


def test_a_directory_is_no_unit_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that is named as a unit file is an error, whether it is named itself or lies among others."""
    (tmp_path / "web.toml").mkdir()
    for path in (tmp_path / "web.toml", f"{tmp_path}/web.toml/", tmp_path):
        result = call(capsys, "verify", str(path))
        assert result.code == 1
        assert "web.toml: is not a regular file" in result.err


def test_files_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file is an error of that file, no file at all a wrong command line."""
    for path in (tmp_path / "none.toml", tmp_path / "none"):
        result = call(capsys, "verify", str(path))
        assert (result.code, result.err) == (1, f"{path}: No such file or directory\n")
    assert call(capsys, "verify").code == 2

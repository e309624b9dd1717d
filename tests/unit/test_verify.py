"""Checking files without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsup.unit.verify import verify_files

REPOSITORY = Path(__file__).resolve().parents[2]


def errors(*paths: Path) -> list[str]:
    """What is wrong with these files, each named by its last part."""
    return [str(diagnostic).rpartition("/")[2] for diagnostic in verify_files(paths)]


def test_a_unit_is_checked_with_its_dropins(tmp_path: Path) -> None:
    """The drop-ins beside a file count, and an error in one is placed there; nothing is said twice."""
    (tmp_path / "web.toml").write_text("[cpu]\nvcpus = 4\n")
    (tmp_path / "web.toml.d").mkdir()
    dropin = tmp_path / "web.toml.d/x.toml"
    dropin.write_text("[cpu]\nmax-vcpus = 2\nvcpu = 3\n")
    expected = ["x.toml:2: cpu.max-vcpus: max-vcpus (2) is less than vcpus (4)"]
    unknown = "x.toml:3: cpu.vcpu: unknown key 'vcpu'; did you mean 'vcpus'?"
    assert errors(tmp_path / "web.toml") == [*expected, unknown]
    assert errors(tmp_path / "web.toml", dropin, tmp_path / "web.toml") == [*expected, unknown]
    assert errors(dropin) == [*expected, unknown]


def test_a_dropin_is_checked_with_its_unit(tmp_path: Path) -> None:
    """A drop-in that contradicts its unit is wrong by itself too, wherever the contradiction is placed."""
    (tmp_path / "web.toml").write_text("[cpu]\nmax-vcpus = 2\n")
    (tmp_path / "web.toml.d").mkdir()
    dropin = tmp_path / "web.toml.d/x.toml"
    dropin.write_text("[cpu]\nvcpus = 4\n")
    expected = ["web.toml:2: cpu.max-vcpus: max-vcpus (2) is less than vcpus (4)"]
    assert errors(dropin) == errors(tmp_path / "web.toml.d") == errors(tmp_path) == expected
    (tmp_path / "web.toml").unlink()
    assert errors(dropin) == errors(tmp_path) == []
    (tmp_path / "web.toml").write_text("")
    assert errors(dropin) == errors(tmp_path) == []


def test_a_directory_stands_for_all_in_it(tmp_path: Path) -> None:
    """Units, templates, instances that have a folder alone, and drop-ins whose unit lies elsewhere."""
    (tmp_path / "dev@.toml").write_text("[cpu]\nvcpus = 4\n")
    for folder, text in {
        "dev@alice": "[cpu]\nmax-vcpus = 2\n",
        "elsewhere": "[cpu]\nvcpu = 1\n",
        "alone@": "[cpu]\nvcpu = 1\n",
        "-x": "[cpu]\nvcpus = 0\n",
        ".hidden": "[cpu]\nvcpus = 0\n",
    }.items():
        (tmp_path / f"{folder}.toml.d").mkdir()
        (tmp_path / f"{folder}.toml.d/{folder}.toml").write_text(text)
    unknown = "unknown key 'vcpu'; did you mean 'vcpus'?"
    assert errors(tmp_path) == [
        "-x.toml.d: '-x' is not a valid unit name: use letters, digits, '_', '.' and '-', at most 48, starting with a "
        "letter or digit",
        f"alone@.toml:2: cpu.vcpu: {unknown}",
        "dev@alice.toml:2: cpu.max-vcpus: max-vcpus (2) is less than vcpus (4)",
        f"elsewhere.toml:2: cpu.vcpu: {unknown}",
    ]


def test_an_instance_is_checked_by_its_template(tmp_path: Path) -> None:
    """An instance needs no file of its own: the template's values, with its name in them, are checked."""
    (tmp_path / "web@.toml").write_text("[unit]\nafter = ['web@%i']\n")
    assert errors(tmp_path / "web@.toml") == []
    assert errors(tmp_path / "web@blue.toml") == ["web@.toml:2: unit.after: names the VM itself"]
    assert errors(tmp_path / "db@blue.toml") == ["db@blue.toml: No such file or directory"]


def test_an_instance_is_checked_with_its_templates_dropins(tmp_path: Path) -> None:
    """A file of an instance takes the template's drop-ins, as when it is loaded."""
    (tmp_path / "web@blue.toml").write_text("[cpu]\nvcpus = 4\n")
    (tmp_path / "web@.toml.d").mkdir()
    (tmp_path / "web@.toml.d/x.toml").write_text("[cpu]\nmax-vcpus = 2\n")
    assert len(errors(tmp_path / "web@blue.toml")) == 1


def test_files_that_are_right(tmp_path: Path) -> None:
    """Units, templates, drop-ins that are incomplete by themselves, and masks are right."""
    (tmp_path / "web.toml.d").mkdir()
    texts = {
        "web.toml": "[cpu]\n",
        "web@.toml": "[[nic]]\nid = 'a'\nforward = ['22%i:22']\n",
        "web.toml.d/a.toml": "[[device]]\nid = 'rng'\n",
        "web.toml.d/mask.toml": "",
        "masked.toml": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "web.toml.d/a.toml").write_text("[[nic]]\nid = 'lan'\n")
    (tmp_path / "null.toml").symlink_to("/dev/null")
    assert errors(*(tmp_path / name for name in texts), tmp_path / "null.toml") == []


def test_an_instance_to_come_hides_no_wrong_specifier(tmp_path: Path) -> None:
    """A template's value that awaits its instance is still checked for specifiers that no instance makes right."""
    (tmp_path / "web@.toml").write_text(
        "[unit]\ndescription = '%i %q'\n[[nic]]\nid = 'a'\nforward = ['22%i:22', '%']\n"
    )
    assert [error.partition(";")[0] for error in errors(tmp_path / "web@.toml")] == [
        "web@.toml:2: unit.description: unknown specifier '%q'",
        "web@.toml:5: nic.a.forward: unknown specifier '%'",
    ]


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file of any name, a wrong ending, a wrong name and a FIFO are errors."""
    (tmp_path / "web.conf").write_text("[cpu]\n")
    (tmp_path / "we b.toml").write_text("[cpu]\nvcpus = 0\n")
    (tmp_path / "-x.toml.d").mkdir()
    (tmp_path / "-x.toml.d/a.toml").write_text("[cpu]\n")
    (tmp_path / "-x.toml.d/x.conf").write_text("[cpu]\n")
    os.mkfifo(tmp_path / "fifo.toml")
    found = errors(
        *(
            tmp_path / name
            for name in ("a.toml", "absent", "absent.toml.d", "web.conf", "we b.toml", "-x.toml.d/a.toml", "fifo.toml")
        ),
        *(tmp_path / "-x.toml.d" / name for name in ("x.conf", "absent.toml")),
    )
    assert [message.partition(": ")[2][:40] for message in found] == [
        *["No such file or directory"] * 3,
        "a unit file's name ends in .toml and beg",
        "'we b' is not a valid unit name: use let",
        "cpu.vcpus: must be from 1 to 4096, not 0",
        "'-x' is not a valid unit name: use lette",
        "is not a regular file",
        "a unit file's name ends in .toml and beg",
        "No such file or directory",
    ]


HEAVY = {"trio", "asyncio", "structlog", "difflib", "jsonschema", "subprocess", "socket", "logging", "h11", "qemu"}


@pytest.mark.parametrize("module", ["qsup.unit.verify", "qsup.unit.load", "qsup.unit.write", "qsup.unit.schema"])
def test_nothing_heavy_is_imported(module: str) -> None:
    """`qsupctl verify` starts fast: the unit room loads nothing that only a daemon or an error message needs."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) & HEAVY == set()
    assert done.returncode == 0

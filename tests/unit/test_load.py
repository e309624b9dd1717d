"""Unit files on a search path."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from qsup.errors import NoSuchUnit, UnitError
from qsup.unit.document import MAX_BYTES
from qsup.unit.load import Catalog, LoadedUnit, load_catalog, load_unit, read_text, read_unit
from qsup.unit.specifier import SpecifierContext


def context(name: str) -> SpecifierContext:
    """What specifiers stand for in these tests."""
    return SpecifierContext(name=name, hostname="host", runtime_dir="/run/q", state_dir="/var/q")


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A search path of three directories, the last one with the highest priority."""
    return tmp_path / "lib", tmp_path / "run", tmp_path / "etc"


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Write files below a directory."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def load(name: str, dirs: tuple[Path, ...]) -> LoadedUnit:
    """Load one unit."""
    return load_unit(name, dirs, context(name))


def catalog(dirs: tuple[Path, ...]) -> Catalog:
    """Load everything."""
    return load_catalog(dirs, context)


def names(found: Catalog) -> tuple[list[str], list[str]]:
    """The units and the templates of a catalog."""
    return list(found.units), list(found.templates)


def described(text: str) -> str:
    """A unit file, or a drop-in, that says only its description."""
    return f'[unit]\ndescription = "{text}"\n'


# Which file counts


def test_the_later_directory_wins(dirs: tuple[Path, ...]) -> None:
    """A unit file replaces the one of its name in an earlier directory as a whole."""
    write(dirs[0], {"web.toml": described("lib") + "[cpu]\nvcpus = 2\n"})
    write(dirs[2], {"web.toml": described("etc")})
    loaded = load("web", dirs)
    assert (loaded.unit.unit.description, loaded.unit.cpu.vcpus) == ("etc", 1)
    assert loaded.files == (str(dirs[2] / "web.toml"),)


def test_dropins_apply_in_the_order_of_their_names(dirs: tuple[Path, ...]) -> None:
    """Drop-ins of all directories are merged by file name; one in a later directory shadows its namesake."""
    write(dirs[0], {"web.toml": described("lib"), "web.toml.d/20.toml": "[cpu]\nvcpus = 2\n"})
    write(dirs[1], {"web.toml.d/20.toml": "[cpu]\nmax-vcpus = 8\n", "web.toml.d/10.toml": "[cpu]\nvcpus = 4\n"})
    write(dirs[2], {"web.toml.d/30.toml": '[memory]\nsize = "1G"\n', "web.toml.d/README": "no drop-in"})
    loaded = load("web", dirs)
    assert (loaded.unit.cpu.vcpus, loaded.unit.cpu.max_vcpus, loaded.unit.memory.size) == (4, 8, 1 << 30)
    assert [Path(file).name for file in loaded.files] == ["web.toml", "10.toml", "20.toml", "30.toml"]


@pytest.mark.parametrize("how", ["empty", "null"])
def test_masks(dirs: tuple[Path, ...], how: str) -> None:
    """An empty file, or a link to /dev/null, hides the unit or drop-in of its name."""
    write(dirs[0], {"web.toml": described("lib"), "db.toml": "[cpu]\n", "web.toml.d/a.toml": "[cpu]\nvcpus = 2\n"})
    for mask in ("db.toml", "web.toml.d/a.toml"):
        path = dirs[2] / mask
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("") if how == "empty" else path.symlink_to("/dev/null")
    assert load("web", dirs).unit.cpu.vcpus == 1
    assert names(catalog(dirs)) == (["web"], [])
    with pytest.raises(NoSuchUnit, match="no unit 'db', or it is masked"):
        load("db", dirs)


def test_templates(dirs: tuple[Path, ...]) -> None:
    """An instance comes from its template with its specifiers, and takes the drop-ins of both."""
    write(
        dirs[0],
        {
            "web@.toml": '[unit]\ndescription = "%n on %H"\n[[disk]]\nid = "root"\npath = "%S/%i.raw"\n',
            "web@.toml.d/10.toml": "[cpu]\nvcpus = 2\n",
            "web@.toml.d/20.toml": "[cpu]\nmax-vcpus = 16\n",
        },
    )
    write(dirs[1], {"web@blue.toml.d/20.toml": "[cpu]\nmax-vcpus = 4\n"})
    # the folder of the instance wins, whatever the directory
    write(dirs[2], {"web@.toml.d/20.toml": "[cpu]\nmax-vcpus = 32\n"})
    blue, green = load("web@blue", dirs).unit, load("web@green", dirs).unit
    assert (blue.unit.description, blue.disks[0].path) == ("web@blue on host", "/var/q/blue.raw")
    assert (blue.cpu.vcpus, blue.cpu.max_vcpus, green.cpu.max_vcpus) == (2, 4, 32)


def test_an_instance_with_a_file_of_its_own(dirs: tuple[Path, ...]) -> None:
    """`web@blue.toml` replaces the template for that instance, in whichever directory it is."""
    write(dirs[0], {"web@blue.toml": described("own")})
    write(dirs[2], {"web@.toml": described("template")})
    assert load("web@blue", dirs).unit.unit.description == "own"
    assert load("web@red", dirs).unit.unit.description == "template"


def test_catalog(dirs: tuple[Path, ...]) -> None:
    """A catalog holds the units, the templates, and those instances that have files of their own."""
    write(dirs[0], {"web@.toml": described("%i"), "db.toml": described("db"), "gone.toml.d/a.toml": "[cpu]\n"})
    write(dirs[1], {"web@blue.toml.d/a.toml": "[cpu]\nvcpus = 2\n", "web@red.toml": described("red"), "x.conf": "?"})
    write(dirs[2], {".hidden.toml": "?", "db.toml~": "?"})
    found = catalog(dirs)
    assert found.diagnostics == ()
    assert names(found) == (["db", "web@blue", "web@red"], ["web@"])
    assert found.units["web@blue"].unit.unit.description == "blue"
    assert found.templates["web@"].unit.unit.description == "%i"


def test_missing_directories(dirs: tuple[Path, ...]) -> None:
    """Directories that do not exist hold no units."""
    assert catalog(dirs) == Catalog(units={}, templates={})


@pytest.mark.parametrize("name", ["../web", "web/x", "", ".", "web\n", "-web", "web@@", "a" * 300])
def test_names_that_are_none(dirs: tuple[Path, ...], name: str) -> None:
    """A name that is no unit name leads to no file."""
    write(dirs[0], {"web.toml": described("web")})
    with pytest.raises(NoSuchUnit, match="not a valid unit name"):
        read_unit(name, dirs)


# What a loaded unit carries


def test_text_and_etag(dirs: tuple[Path, ...]) -> None:
    """The text shows every file under its path; the etag changes with any file and with nothing else."""
    write(dirs[0], {"web.toml": described("web"), "web.toml.d/a.toml": "[cpu]\nvcpus = 2"})
    first, second = load("web", dirs), load("web", dirs)
    paths = [dirs[0] / "web.toml", dirs[0] / "web.toml.d/a.toml"]
    assert first.text == f"# {paths[0]}\n{described('web')}\n# {paths[1]}\n[cpu]\nvcpus = 2\n"
    assert first.etag == second.etag
    write(dirs[0], {"web.toml.d/a.toml": "[cpu]\nvcpus = 2 "})
    assert load("web", dirs).etag != first.etag


# Errors


def test_all_errors_of_all_files(dirs: tuple[Path, ...]) -> None:
    """One file's errors hide neither another's nor the units that are right."""
    write(dirs[0], {"a.toml": "[cpu]\nvcpu = 1\n", "b.toml": "x =\n", "c.toml": described("c")})
    write(
        dirs[2], {"c.toml.d/x.toml": "[memory]\nsize = 1\n\n[cpu]\nvcpus = 0\n", "we b.toml": "", "d.toml": "[cpu]\n"}
    )
    found = catalog(dirs)
    assert names(found) == (["d"], [])
    assert [(Path(d.file).name, d.line, d.key) for d in found.diagnostics] == [
        ("we b.toml", 0, ""),
        ("a.toml", 2, "cpu.vcpu"),
        ("b.toml", 1, ""),
        ("x.toml", 2, "memory.size"),
        ("x.toml", 5, "cpu.vcpus"),
    ]


def test_a_contradiction_between_files_names_the_right_one(dirs: tuple[Path, ...]) -> None:
    """What a drop-in contradicts is reported at the drop-in's line when it said the blamed key, else at the unit's."""
    write(dirs[0], {"web.toml": '[cpu]\nvcpus = 4\n[[nic]]\nid = "lan"\n'})
    write(dirs[2], {"web.toml.d/x.toml": '\n[cpu]\nmax-vcpus = 2\n[[nic]]\nid = "lan"\ntype = "tap"\n'})
    with pytest.raises(UnitError) as caught:
        load("web", dirs)
    assert [str(diagnostic) for diagnostic in caught.value.diagnostics] == [
        f"{dirs[2]}/web.toml.d/x.toml:3: cpu.max-vcpus: max-vcpus (2) is less than vcpus (4)",
        f"{dirs[2]}/web.toml.d/x.toml:6: nic.lan.type: a tap NIC needs a bridge",
    ]
    assert caught.value.instance == "web"


def test_a_contradiction_that_a_dropin_lifts(dirs: tuple[Path, ...]) -> None:
    """Rules between keys look at the merged unit: a file may be incomplete without its drop-in."""
    write(dirs[0], {"web.toml": '[[nic]]\nid = "lan"\ntype = "tap"\n'})
    write(dirs[2], {"web.toml.d/x.toml": '[[nic]]\nid = "lan"\nbridge = "br0"\n'})
    assert load("web", dirs).unit.nics[0].bridge == "br0"


def test_errors_of_a_template_are_told_once(dirs: tuple[Path, ...]) -> None:
    """A template's error is not repeated for each of its instances."""
    write(
        dirs[0], {"web@.toml": "[cpu]\nvcpus = 0\n", "web@a.toml.d/x.toml": "[cpu]\n", "web@b.toml.d/x.toml": "[cpu]\n"}
    )
    assert len(catalog(dirs).diagnostics) == 1


def test_values_that_await_their_instance(dirs: tuple[Path, ...]) -> None:
    """What only an instance makes wrong or right is judged in the instance, not in the template."""
    write(
        dirs[0],
        {
            "web@.toml": '[service]\nready = { port = 22 }\n[[nic]]\nid = "lan"\nforward = ["22%i:22"]\n',
            "web@1.toml.d/x.toml": "[cpu]\n",
            "web@blue.toml.d/x.toml": "[cpu]\n",
        },
    )
    found = catalog(dirs)
    assert names(found) == (["web@1"], ["web@"])
    assert found.units["web@1"].unit.nics[0].forward[0].host_port == 221
    (diagnostic,) = found.diagnostics
    assert "entry 1: '22blue:22' is not a forward" in diagnostic.message


def test_files_that_cannot_be_read(dirs: tuple[Path, ...]) -> None:
    """FIFOs, sockets, devices, directories, dead links and giants are errors, and nobody waits for them."""
    write(dirs[0], {"ok.toml": described("ok"), "big.toml": "#" * (MAX_BYTES + 1)})
    os.mkfifo(dirs[0] / "fifo.toml")
    (dirs[0] / "dir.toml").mkdir()
    (dirs[0] / "tty.toml").symlink_to("/dev/zero")
    (dirs[0] / "dead.toml").symlink_to("nowhere")
    (dirs[0] / "loop.toml").symlink_to("loop.toml")
    (dirs[0] / "not-dir.toml.d").write_text("")
    write(dirs[0], {"not-dir.toml": described("x")})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(dirs[0] / "socket.toml"))
        found = catalog(dirs)
    assert names(found) == (["ok"], [])
    assert {Path(d.file).name: d.message for d in found.diagnostics} == {
        "big.toml": "is larger than 64 KiB",
        "dead.toml": "a symbolic link to nowhere: No such file or directory",
        "dir.toml": "is not a regular file",
        "fifo.toml": "is not a regular file",
        "loop.toml": "a symbolic link to loop.toml: Too many levels of symbolic links",
        "not-dir.toml.d": "Not a directory",
        "socket.toml": "is not a regular file",
        "tty.toml": "a symbolic link to /dev/zero: is not a regular file",
    }


def test_links_to_files_elsewhere_are_followed(dirs: tuple[Path, ...], tmp_path: Path) -> None:
    """A symbolic link to a regular file is that file: an administrator's choice."""
    write(tmp_path, {"elsewhere/real.toml": described("real")})
    dirs[0].mkdir()
    (dirs[0] / "web.toml").symlink_to(tmp_path / "elsewhere/real.toml")
    (dirs[0] / "web@blue.toml").symlink_to("web.toml")
    assert load("web", dirs).unit.unit.description == load("web@blue", dirs).unit.unit.description == "real"


@pytest.mark.parametrize("file", [b"-web.toml", b"a b.toml", b"a\nb.toml", b"\xff.toml", b"web@.x@.toml", b"@a.toml"])
def test_file_names_that_are_no_unit_names(dirs: tuple[Path, ...], file: bytes) -> None:
    """A file whose name is no unit name is an error on one line, whatever its bytes."""
    dirs[0].mkdir()
    (dirs[0] / os.fsdecode(file)).write_text(described("x"))
    (diagnostic,) = catalog(dirs).diagnostics
    assert "is not a valid unit name: use letters" in diagnostic.message
    assert str(diagnostic).isprintable()


# Texts that are not on the search path yet


def test_a_text_is_read_as_a_unit(dirs: tuple[Path, ...]) -> None:
    """A text is checked as the file of a unit, with the drop-ins that wait for it."""
    write(dirs[0], {"web.toml.d/x.toml": "[cpu]\nmax-vcpus = 2\n"})
    (diagnostic,) = read_text("web", "[cpu]\nvcpus = 4\n", context("web"), dirs=dirs)[1]
    assert (Path(diagnostic.file).name, diagnostic.line) == ("x.toml", 2)
    assert read_text("web", "[cpu]\nvcpus = 4\n", context("web"))[1] == ()
    assert [str(d) for d in read_text("web", b"\xff", context("web"))[1]] == [
        "web.toml:1: not UTF-8: invalid start byte 0xff"
    ]
    assert "is not a valid unit name" in str(read_text("../web", "", context("web"))[1][0])
    assert read_text("web", "\ud800", context("web"))[1][0].line == 1

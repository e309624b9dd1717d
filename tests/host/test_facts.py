"""The facts of a host: KVM and firmware, read from files that are not always what they should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qsup.host.facts import SYSTEM_FIRMWARE, find_firmware, firmware_directories, read_host_facts

INTEL = "processor\t: 0\nflags\t\t: fpu vme vmx sse2\n"
NESTED = "processor\t: 0\nflags\t\t: fpu vme sse2 hypervisor\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A firmware image."""
    path = tmp_path / "code.fd"
    path.touch()
    return path


def descriptor(image: Path, **changes: Any) -> dict[str, Any]:
    """A descriptor as Debian's are."""
    file = {"filename": str(image), "format": "raw"}
    value = {
        "description": "UEFI firmware for x86_64",
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", "executable": file, "nvram-template": file},
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        "tags": [],
    }
    return value | changes


def write(path: Path, value: object) -> None:
    """Write a descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def facts_with(tmp_path: Path, cpuinfo: str) -> tuple[bool, str]:
    """What is said of KVM on a host with an openable device and these CPU flags."""
    (tmp_path / "kvm").touch()
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    facts = read_host_facts(firmware=(), kvm=tmp_path / "kvm", cpuinfo=tmp_path / "cpuinfo")
    assert facts.kvm_device
    return facts.kvm, facts.kvm_reason


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_kvm_is_usable(tmp_path: Path, flag: str) -> None:
    """KVM can be used where its device opens and the CPU has the flag."""
    assert facts_with(tmp_path, INTEL.replace("vmx", flag)) == (True, "")


@pytest.mark.parametrize("cpuinfo", [NESTED, ""])
def test_kvm_device_without_the_flag(tmp_path: Path, cpuinfo: str) -> None:
    """An openable device on a CPU without the flag is no KVM for ordinary guests, and the reason says so."""
    usable, reason = facts_with(tmp_path, cpuinfo)
    assert not usable
    assert "neither vmx nor svm" in reason


def test_no_kvm_device(tmp_path: Path) -> None:
    """A host without the device has no KVM, and the reason names the device."""
    facts = read_host_facts(firmware=(), kvm=tmp_path / "kvm", cpuinfo=tmp_path / "cpuinfo")
    assert (facts.kvm, facts.kvm_device) == (False, False)
    assert facts.kvm_reason.startswith(f"there is no {tmp_path}/kvm")


def test_kvm_device_that_does_not_open(tmp_path: Path) -> None:
    """A device that cannot be opened is reported in the kernel's words."""
    (tmp_path / "kvm").mkdir()
    facts = read_host_facts(firmware=(), kvm=tmp_path / "kvm")
    assert facts.kvm_reason == f"{tmp_path}/kvm cannot be opened: Is a directory"


def test_this_host() -> None:
    """The facts of the host that runs this can be read."""
    facts = read_host_facts()
    assert facts.architecture == os.uname().machine
    assert facts.kvm <= facts.kvm_device
    assert bool(facts.kvm_reason) is not facts.kvm
    assert len(facts.boot_id) == 36


def test_descriptor_is_read(tmp_path: Path, image: Path) -> None:
    """A descriptor's interfaces, images, machines and features are all there."""
    write(tmp_path / "d/50-a.json", descriptor(image))
    (found,) = find_firmware([tmp_path / "d"])
    assert (found.interfaces, found.mapping, found.features) == (("uefi",), "flash", ("acpi-s3",))
    assert found.executable == found.variables == str(image)
    assert (found.executable_format, found.variables_format) == ("raw", "raw")
    assert found.machines == {"x86_64": ("pc-i440fx-*", "pc-q35-*")}


def test_firmware_in_memory_is_read(tmp_path: Path, image: Path) -> None:
    """A firmware that is no flash has one image and no variables."""
    write(tmp_path / "d/50-a.json", descriptor(image, mapping={"device": "memory", "filename": str(image)}))
    (found,) = find_firmware([tmp_path / "d"])
    assert (found.executable, found.variables) == (str(image), "")


def test_descriptors_are_ordered_by_name(tmp_path: Path, image: Path) -> None:
    """All directories' descriptors are tried in the order of their file names."""
    for name in ("a/60-x.json", "b/40-y.json", "a/50-z.json"):
        write(tmp_path / name, descriptor(image))
    found = find_firmware([tmp_path / "a", tmp_path / "b"])
    assert [Path(each.descriptor).name for each in found] == ["40-y.json", "50-z.json", "60-x.json"]


def test_earlier_directory_overrides(tmp_path: Path, image: Path) -> None:
    """A file of the same name in a directory of higher priority stands for the other."""
    write(tmp_path / "etc/50-a.json", descriptor(image, features=["ours"]))
    write(tmp_path / "usr/50-a.json", descriptor(image, features=["theirs"]))
    assert [each.features for each in find_firmware([tmp_path / "etc", tmp_path / "usr"])] == [("ours",)]


def test_empty_file_masks(tmp_path: Path, image: Path) -> None:
    """An empty file hides those of the same name below it, and so does a link to /dev/null."""
    write(tmp_path / "etc/50-a.json", "")
    (tmp_path / "etc/60-b.json").symlink_to("/dev/null")
    for name in ("50-a", "60-b"):
        write(tmp_path / f"usr/{name}.json", descriptor(image))
    assert find_firmware([tmp_path / "etc", tmp_path / "usr"]) == ()


@pytest.mark.parametrize(
    "text",
    ["not json", "[]", "{}", "null", "[" * 100_000, '{"mapping": 1}', " " * 70_000, "\udcff"],
    ids=["text", "array", "empty", "null", "deep", "wrong", "large", "bytes"],
)
def test_broken_descriptor_is_passed_over(tmp_path: Path, image: Path, text: str) -> None:
    """A descriptor that is none hides nothing else."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/40-broken.json").write_bytes(text.encode(errors="surrogateescape"))
    write(tmp_path / "d/50-good.json", descriptor(image))
    assert [Path(each.descriptor).name for each in find_firmware([tmp_path / "d"])] == ["50-good.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"mapping": {"device": "flash", "executable": {"filename": "/nonexistent", "format": "raw"}}},
        {"mapping": {"device": "flash", "executable": {"filename": ["x"], "format": "raw"}}},
        {"features": [1]},
        {"targets": [{"architecture": "x86_64"}]},
        {"targets": 7},
    ],
    ids=["absent image", "no string", "feature", "no machines", "no targets"],
)
def test_unusable_descriptor_is_passed_over(tmp_path: Path, image: Path, changes: dict[str, Any]) -> None:
    """A descriptor of what is not there, or of another shape, is not used."""
    write(tmp_path / "d/50-a.json", descriptor(image, **changes))
    assert find_firmware([tmp_path / "d", tmp_path / "absent"]) == ()


def test_unknown_image_format_is_passed_over(tmp_path: Path, image: Path) -> None:
    """A firmware image in a format other than raw and qcow2 is not used."""
    file = {"filename": str(image), "format": "vmdk"}
    write(tmp_path / "d/50-a.json", descriptor(image, mapping={"device": "flash", "executable": file}))
    assert find_firmware([tmp_path / "d"]) == ()


def test_users_have_a_directory_of_their_own() -> None:
    """A user's own descriptors go first; root has none of its own."""
    assert firmware_directories({"HOME": "/home/a"}, uid=1000)[0] == Path("/home/a/.config/qemu/firmware")
    assert firmware_directories({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, uid=1000)[0] == Path("/x/qemu/firmware")
    assert firmware_directories({"HOME": "/root"}, uid=0) == SYSTEM_FIRMWARE


def test_how_a_host_manages_memory(tmp_path: Path) -> None:
    """What ksmd does and when pages become huge is told by files, any of which may be missing or strange."""

    def write_all(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    facts = read_host_facts(memory=tmp_path)
    assert (facts.merges_pages, facts.hugepages) == (False, {})
    pages = {
        "transparent_hugepage__enabled": "always [madvise] never\n",
        "transparent_hugepage__shmem_enabled": "never\n",
    }
    write_all(ksm__run="1\n", **pages)
    facts = read_host_facts(memory=tmp_path)
    assert (facts.merges_pages, facts.hugepages) == (True, {"enabled": "madvise"})
    write_all(ksm__run="2\n", transparent_hugepage__enabled="\udcff[[\n".encode(errors="replace").decode())
    assert read_host_facts(memory=tmp_path).merges_pages is False

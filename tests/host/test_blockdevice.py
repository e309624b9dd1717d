"""Tests of `qsup.host.blockdevice`: which disk a path stands for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qsup.errors import HostError
from qsup.host.blockdevice import whole_disk


def sysfs(top: Path, number: str, *, disk: str = "") -> Path:
    """A /sys/dev/block with one device, of a disk if it is a partition."""
    devices = top / "devices"
    own = devices / "sda" / "sda1" if disk else devices / "sda"
    own.mkdir(parents=True)
    (own / "dev").write_text(f"{number}\n")
    if disk:
        (own / "partition").write_text("1\n")
        (devices / "sda/dev").write_text(f"{disk}\n")
    block = top / "block"
    block.mkdir()
    (block / number).symlink_to(own)
    return block


def own_number(path: Path) -> str:
    """Of the file system that a path is on."""
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def test_a_file_stands_for_the_disk_of_its_file_system_in_a_fake_sysfs(tmp_path: Path) -> None:
    """The whole one, where it is on a partition."""
    assert whole_disk(str(tmp_path), sysfs=sysfs(tmp_path / "a", own_number(tmp_path))) == own_number(tmp_path)
    assert whole_disk(str(tmp_path), sysfs=sysfs(tmp_path / "b", own_number(tmp_path), disk="8:0")) == "8:0"


def test_what_is_on_no_disk_is_told(tmp_path: Path) -> None:
    """With the path; so is one that is not there."""
    with pytest.raises(HostError, match="/proc/self is on no block device of the host"):
        whole_disk("/proc/self")
    with pytest.raises(HostError, match="absent: No such file or directory"):
        whole_disk(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError, match="on no block device"):
        whole_disk(str(tmp_path), sysfs=tmp_path / "empty")


@pytest.mark.skipif(not Path("/dev/loop0").exists(), reason="this machine has no loop devices")
def test_a_block_device_stands_for_itself() -> None:
    """By its own numbers."""
    assert whole_disk("/dev/loop0") == "7:0"

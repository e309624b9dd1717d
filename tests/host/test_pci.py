"""Tests of `qsup.host.pci` on trees of real shapes; no host that the tests run on has an IOMMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsup.errors import HostDeviceError, UnsupportedError
from qsup.host.pci import VFIO, Passthrough
from tests.host.fakesys import AUDIO, BRIDGE, DISPLAY, NETWORK, STORAGE, FakeSysfs

GPU, SOUND, CARD, DISK = "0000:03:00.0", "0000:03:00.1", "0000:04:00.0", "0000:05:00.0"


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    """A graphics card with its sound behind a bridge in one group, a network card and a disk alone in theirs."""
    fake = FakeSysfs(tmp_path)
    fake.add_pci("0000:00:01.0", BRIDGE, driver="pcieport", group=12)
    fake.add_pci(GPU, DISPLAY, driver="amdgpu", group=12)
    fake.add_pci(SOUND, AUDIO, driver="snd_hda_intel", group=12)
    fake.add_pci(CARD, NETWORK, driver="e1000e", group=13)
    fake.add_pci(DISK, STORAGE, driver="nvme", group=14)
    return fake


def test_fake_sysfs_a_device_goes_to_vfio_and_back(sysfs: FakeSysfs) -> None:
    """Its node is the VM's user's meanwhile, and then root's again."""
    passthrough = Passthrough(sysfs)
    (binding,) = passthrough.reserve({"device.lan": CARD}, "web")
    assert (binding.driver, binding.group) == ("e1000e", 13)
    assert sysfs.driver(CARD) == "e1000e"
    passthrough.bind(binding, 70000)
    assert sysfs.driver(CARD) == VFIO
    assert sysfs.owners == {"13": 70000}
    passthrough.release("web", "device.lan")
    assert sysfs.driver(CARD) == "e1000e"
    assert sysfs.owners == {"13": 0}
    assert (sysfs.device(CARD) / "driver_override").read_text() == "(null)\n"
    assert passthrough.held("web") == ()


@pytest.mark.parametrize("driver", ["", VFIO])
def test_fake_sysfs_what_had_no_driver_or_vfios_keeps_that(sysfs: FakeSysfs, driver: str) -> None:
    """Somebody else arranged it so."""
    sysfs.add_pci("0000:06:00.0", NETWORK, driver=driver, group=15)
    passthrough = Passthrough(sysfs)
    (binding,) = passthrough.reserve({"device.lan": "0000:06:00.0"}, "web")
    passthrough.bind(binding, None)
    assert sysfs.driver("0000:06:00.0") == VFIO
    passthrough.release("web")
    assert sysfs.driver("0000:06:00.0") == driver


def test_fake_sysfs_a_group_that_the_host_uses_is_refused_by_its_members(sysfs: FakeSysfs) -> None:
    """They are named with their drivers; together they can be had, and bridges are nobody's."""
    passthrough = Passthrough(sysfs)
    with pytest.raises(HostDeviceError) as caught:
        passthrough.reserve({"device.gpu": GPU}, "web")
    words = f"device.gpu: PCI device {GPU} shares IOMMU group 12 with {SOUND} (snd_hda_intel), which the host uses"
    assert caught.value.message == words
    assert passthrough.held("web") == ()
    both = passthrough.reserve({"device.gpu": GPU, "device.sound": SOUND}, "web")
    for binding in both:
        passthrough.bind(binding, 70000)
    passthrough.release("web", "device.gpu")
    assert sysfs.owners == {"12": 70000}, "the other one is still in use"
    passthrough.release("web")
    assert sysfs.owners == {"12": 0}
    assert (sysfs.driver(GPU), sysfs.driver(SOUND)) == ("amdgpu", "snd_hda_intel")


def test_fake_sysfs_a_member_without_a_driver_is_in_nobodys_way(sysfs: FakeSysfs) -> None:
    """Nor is one that VFIO has already."""
    (sysfs.device(SOUND) / "driver").unlink()
    assert Passthrough(sysfs).reserve({"device.gpu": GPU}, "web")


def test_fake_sysfs_what_one_vm_has_no_other_gets(sysfs: FakeSysfs) -> None:
    """Neither the device nor another of its group; whose it is, is told. An adopted VM's count, too."""
    sysfs.add_pci("0000:04:00.1", NETWORK, group=13)
    first = Passthrough(sysfs)
    bindings = first.reserve({"device.lan": CARD}, "web")
    later = Passthrough(sysfs)
    later.restore(bindings, "web")
    for passthrough in (first, later):
        with pytest.raises(HostDeviceError, match=rf"PCI device {CARD} is device\.lan of VM web already"):
            passthrough.reserve({"device.x": CARD}, "db")
        with pytest.raises(HostDeviceError, match=r"device\.lan of this VM already"):
            passthrough.reserve({"device.x": CARD}, "web")
        with pytest.raises(HostDeviceError, match=rf"IOMMU group 13 with {CARD}, which VM web has \(device\.lan\)"):
            passthrough.reserve({"device.x": "0000:04:00.1"}, "db")


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("0000:09:00.0", HostDeviceError, "there is no PCI device 0000:09:00.0"),
        ("0000:00:01.0", HostDeviceError, "is a bridge"),
        (DISK, HostDeviceError, f"the host has nvme0n1, which is on {DISK}, mounted on /home"),
        ("0000:07:00.0", UnsupportedError, "is in no IOMMU group"),
    ],
)
def test_fake_sysfs_what_cannot_be_given_away(
    sysfs: FakeSysfs, address: str, error: type[Exception], words: str
) -> None:
    """Nothing there, what others are behind, what the host lives on, a host without an IOMMU."""
    sysfs.add_disk(DISK, "nvme0n1", "259:0", mounted="/home")
    sysfs.add_pci("0000:07:00.0", NETWORK, driver="r8169")
    passthrough = Passthrough(sysfs)
    with pytest.raises(error, match=words):
        passthrough.reserve({"device.x": address}, "web")
    assert passthrough.held("web") == ()
    assert sysfs.written == []


def test_fake_sysfs_what_vfio_does_not_take_has_its_driver_again(sysfs: FakeSysfs) -> None:
    """A half-done change is undone; a kernel without the driver is told before anything is done."""
    passthrough = Passthrough(sysfs)
    (binding,) = passthrough.reserve({"device.lan": CARD}, "web")
    sysfs.refuses.add(VFIO)
    with pytest.raises(HostDeviceError, match="vfio-pci does not take PCI device"):
        passthrough.bind(binding, None)
    assert sysfs.driver(CARD) == "e1000e"
    (sysfs.root / "bus/pci/drivers" / VFIO).rmdir()
    sysfs.written.clear()
    with pytest.raises(UnsupportedError, match="has no driver vfio-pci"):
        passthrough.bind(binding, None)
    assert sysfs.written == []


def test_fake_sysfs_a_later_daemon_gives_back_what_a_killed_one_took(sysfs: FakeSysfs) -> None:
    """By the record alone, however far the killed one had come; once more is as good as once."""
    (binding,) = Passthrough(sysfs).reserve({"device.lan": CARD}, "web")
    for taken in (False, True):
        if taken:
            Passthrough(sysfs).bind(binding, 70000)
        later = Passthrough(sysfs)
        later.restore([binding], "web")
        later.release("web")
        later.release("web")
        assert sysfs.driver(CARD) == "e1000e"


def test_fake_sysfs_a_device_between_two_drivers_gets_its_own(sysfs: FakeSysfs) -> None:
    """The killed daemon had taken it from one, and not come to the other."""
    (binding,) = Passthrough(sysfs).reserve({"device.lan": CARD}, "web")
    sysfs.write(sysfs.device(CARD) / "driver_override", VFIO)
    sysfs.write(sysfs.device(CARD) / "driver/unbind", CARD)
    later = Passthrough(sysfs)
    later.restore([binding], "web")
    later.release("web")
    assert sysfs.driver(CARD) == "e1000e"

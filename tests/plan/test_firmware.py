"""Which UEFI build a VM gets, and what is said when there is none."""

from __future__ import annotations

import pytest
from attrs import evolve

from qsup.errors import UnsupportedError
from qsup.plan.firmware import choose_uefi
from qsup.plan.spec import Firmware, HostFacts, ImageFd
from qsup.unit.model import Unit
from qsup.unit.sections.machine import MachineSection
from tests.plan import goldens
from tests.plan.building import build

SECURE, SMM, PLAIN = goldens.DEBIAN_FIRMWARE


def host(*firmware: Firmware) -> HostFacts:
    """A host with these builds, in this order."""
    return evolve(goldens.HOSTS[""], firmware=firmware)


def chosen(wanted: str, *firmware: Firmware, machine: str = "pc-q35-7.2") -> Firmware:
    """The build that is chosen among these."""
    return choose_uefi(wanted, machine, "x86_64", host(*firmware))


def test_plain_build_is_preferred() -> None:
    """`uefi` takes the build without system management mode, wherever it stands."""
    assert chosen("uefi", SECURE, SMM, PLAIN) == PLAIN


def test_build_with_smm_will_do() -> None:
    """`uefi` takes a build that needs system management mode when there is no other; the machine then has it."""
    assert chosen("uefi", SECURE, SMM) == SMM
    plan = build(Unit(machine=MachineSection(firmware="uefi")), host=host(SMM))
    assert any("smm=on" in str(argument) for argument in plan.arguments)


def test_first_of_equals_is_taken() -> None:
    """Among builds that fit equally, the descriptors' order decides."""
    other = evolve(PLAIN, descriptor="/etc/qemu/firmware/10-mine.json")
    assert chosen("uefi", other, PLAIN) == other


def test_secure_insists_on_keys() -> None:
    """`uefi-secure` takes a build with Secure Boot and enrolled keys, and no other."""
    assert chosen("uefi-secure", PLAIN, SMM, SECURE) == SECURE
    with pytest.raises(UnsupportedError, match="with Secure Boot and enrolled keys"):
        chosen("uefi-secure", PLAIN, SMM)


@pytest.mark.parametrize(
    ("unfit", "hint"),
    [
        (evolve(PLAIN, machines={"aarch64": ("virt-*",)}), "ovmf"),
        (evolve(PLAIN, machines={"x86_64": ("pc-i440fx-*",)}), 'it for pc-i440fx-*: say type = "pc" in [machine]'),
        (evolve(PLAIN, machines={"x86_64": ("pc-q35-10.*",)}), f"this host has {PLAIN.descriptor}"),
        (evolve(PLAIN, interfaces=("bios",)), "ovmf"),
        (evolve(PLAIN, mapping="memory", variables=""), "ovmf"),
        (evolve(PLAIN, features=("enrolled-keys",)), f"this host has {PLAIN.descriptor}"),
        (SECURE, 'say firmware = "uefi-secure"'),
    ],
    ids=["architecture", "board", "version", "bios", "memory", "keys", "secure"],
)
def test_unfit_build_is_not_taken(unfit: Firmware, hint: str) -> None:
    """A build for another machine, without variables, or with unwanted keys is not taken; the hint says the way out."""
    with pytest.raises(UnsupportedError, match=r"no UEFI firmware for machine type pc-q35-7\.2") as caught:
        chosen("uefi", unfit)
    assert hint in caught.value.hint
    assert ("ovmf" in caught.value.hint) is (hint == "ovmf")


@pytest.mark.parametrize(
    ("wanted", "machine", "hint"),
    [
        ("uefi-secure", "pc-i440fx-7.2", 'this host has it for pc-q35-*: say type = "q35" in [machine]'),
        ("uefi", "microvm", 'this host has it for pc-q35-* or pc-i440fx-*: say type = "q35" or "pc" in [machine]'),
    ],
)
def test_what_is_installed_is_not_to_be_installed(wanted: str, machine: str, hint: str) -> None:
    """Where the distribution's builds are for other machine types, the hint names those."""
    with pytest.raises(UnsupportedError) as caught:
        chosen(wanted, *goldens.DEBIAN_FIRMWARE, machine=machine)
    assert caught.value.hint == hint


def test_microvm_has_no_uefi() -> None:
    """A board that no build names has no UEFI."""
    with pytest.raises(UnsupportedError, match="machine type microvm"):
        build(Unit(machine=MachineSection(type="microvm", firmware="uefi")))


def test_each_kind_has_variables_of_its_own() -> None:
    """The stores of `uefi` and `uefi-secure` are two files in the VM's own directory, both qcow2."""
    plans = [build(Unit(machine=MachineSection(firmware=kind))) for kind in ("uefi", "uefi-secure")]
    stores = [plan.variables.file for plan in plans if plan.variables]
    assert len(set(stores)) == 2
    images = {request.path: request for plan in plans for request in plan.fds if isinstance(request, ImageFd)}
    for store in stores:
        image = images[f"{goldens.STATE_DIR}/{store}"]
        assert (image.format, image.own, image.writable, image.claim_write) == ("qcow2", True, True, True)

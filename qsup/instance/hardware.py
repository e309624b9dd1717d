"""What a VM consists of while it runs: the one value of a life that changes with what is attached and detached. Pure.

Decides: what the unit, the plan and the claims of a VM are after a change.
Must not: talk to QEMU, or write itself down; `qsup.instance.hotplug` does the one, `qsup.instance.keeper` the other.

Everything that shows or checks a running VM reads this, so that a disk that was attached is as good as one that was
there at the start. The entries of the unit are those of the VM as it runs, whatever the files say.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from qsup.errors import ChangeError
from qsup.host.claims import Claim
from qsup.plan import hotplug, inventory
from qsup.plan.spec import DevicePlan, DiskPlan, NicPlan, PartPlan, PlanSummary
from qsup.unit.entries import entry_of as entry_of
from qsup.unit.entries import without_entry
from qsup.unit.model import Unit
from qsup.unit.write import values_of


@frozen(kw_only=True)
class Attached:
    """Something that has come to a running VM.

    Args:
        part: what QEMU has for it.
        disk, nic: what is known of it, of a disk or NIC.
        claims: on its images.
    """

    part: PartPlan
    disk: DiskPlan | None = None
    nic: NicPlan | None = None
    claims: tuple[Claim, ...] = ()


def leaving(entry: str) -> ChangeError:
    """Why nothing can be done with an entry that is on its way out."""
    return ChangeError(f"{entry} is still being detached", hint="wait until the guest has let it go, or reset it")


def staying(entry: str) -> ChangeError:
    """Why an entry that is none of a device stays as long as the VM runs."""
    words = f"{entry} cannot be taken away while it runs"
    return ChangeError(words, hint="change the unit (--persist), and restart the VM")


class Hardware:
    """The hardware of one life.

    Attributes:
        unit: as it runs.
        values: the same as a record keeps it.
        summary: what is planned of it.
        claims: on images.
        troubles: what is said of devices of the host that are gone, by entry.
        kept: entries that the guest did not let go, as far as this daemon knows.
    """

    def __init__(self, unit: Unit, values: Mapping[str, Any], summary: PlanSummary, claims: tuple[Claim, ...]) -> None:
        self.unit = unit
        self.values = values
        self.summary = summary
        self.claims = claims
        self.troubles: dict[str, str] = {}
        self.kept: set[str] = set()

    def set_unit(self, unit: Unit) -> None:
        """It runs as this says from now on."""
        self.unit, self.values = unit, values_of(unit)

    def part(self, entry: str) -> PartPlan | None:
        """What QEMU has for an entry of the unit, such as ``disk.root``."""
        return inventory.find(self.summary, entry)

    def check_there(self, entry: str) -> None:
        """See that QEMU has an entry, and that it is to stay.

        Raises:
            ChangeError: it is not so.
        """
        part = self.part(entry)
        if part is None or part.state == "coming":
            raise ChangeError(f"QEMU does not have {entry} yet", hint="try again")
        if part.state == "leaving":
            raise leaving(entry)

    def add(self, attached: Attached) -> None:
        """It is there, or coming; the unit is told separately."""
        summary = inventory.with_part(self.summary, attached.part)
        if attached.disk is not None:
            others = tuple(disk for disk in summary.disks if disk.id != attached.disk.id)
            summary = evolve(summary, disks=(*others, attached.disk))
        if attached.nic is not None:
            cards = tuple(nic for nic in summary.nics if nic.id != attached.nic.id)
            summary = evolve(summary, nics=(*cards, attached.nic))
        self.summary = summary
        self.claims = (*(claim for claim in self.claims if claim not in attached.claims), *attached.claims)

    def order_boot(self, order: Mapping[str, int]) -> None:
        """The disks that are booted from are these now, by their ids; see `qsup.plan.disks.boot_order`."""
        disks = tuple(evolve(disk, bootindex=order.get(disk.id, -1)) for disk in self.summary.disks)
        self.summary = evolve(self.summary, disks=disks)

    def replug(self, nic: NicPlan) -> None:
        """What is known of a NIC is this now."""
        nics = tuple(nic if each.id == nic.id else each for each in self.summary.nics)
        self.summary = evolve(self.summary, nics=nics)

    def replace(self, attached: Attached) -> None:
        """An entry that is there has other back ends, another image and other claims now, in its place."""
        entry = attached.part.entry
        parts = tuple(attached.part if part.entry == entry else part for part in self.summary.parts)
        disks = tuple(
            attached.disk if attached.disk is not None and disk.id == attached.disk.id else disk
            for disk in self.summary.disks
        )
        self.summary = evolve(self.summary, parts=parts, disks=disks)
        self.claims = (*(claim for claim in self.claims if claim.entry != entry), *attached.claims)

    def mark(self, entry: str, state: str) -> None:
        """An entry's part is ``there``, ``coming`` or ``leaving``; nothing happens where there is none."""
        part = self.part(entry)
        if part is not None and part.state != state:
            parts = tuple(evolve(each, state=state) if each is part else each for each in self.summary.parts)
            self.summary = evolve(self.summary, parts=parts)

    def count_vcpus(self, number: int) -> None:
        """QEMU makes so many more, or has not made one after all."""
        self.summary = evolve(self.summary, vcpus_made=self.summary.vcpus_made + number)

    def in_state(self, state: str) -> tuple[PartPlan, ...]:
        """The parts that are ``there``, ``coming`` or ``leaving``."""
        return tuple(part for part in self.summary.parts if part.state == state)

    def remove(self, entry: str) -> None:
        """It is gone, from the unit too."""
        self.summary = inventory.without_part(self.summary, entry)
        self.claims = tuple(claim for claim in self.claims if claim.entry != entry)
        if entry_of(self.unit, entry) is not None:
            self.set_unit(without_entry(self.unit, entry))

    def unknown(self, there: Collection[str]) -> list[str]:
        """Those of QEMU's devices that nobody here knows."""
        known = {device.id for device in inventory.devices_of(self.summary)}
        return [id_ for id_ in there if id_ not in known]

    def match(self, there: Collection[str], before: Container[str], strangers: Sequence[DevicePlan]) -> tuple[str, ...]:
        """Take in which devices QEMU has: those that nobody here knows are shown, and what is gone is gone.

        Args:
            there: the ids of all.
            before: the entries that were there, or leaving, when QEMU was asked.
            strangers: those that were unknown then.

        Returns:
            The entries of which QEMU has no device any more, to be given up and then removed here.
        """
        new = self.unknown([device.id for device in strangers])
        kept = []
        for part in self.summary.parts:
            # of what belongs to the VM as a whole each device goes by itself
            left = part if part.entry else evolve(part, devices=tuple(d for d in part.devices if d.id in there))
            if left.devices or left.backends:
                kept.append(left)
        foreign = tuple(device for device in strangers if device.id in new)
        if foreign:
            kept.append(PartPlan(entry="", devices=foreign))
        if tuple(kept) != self.summary.parts:
            self.summary = evolve(self.summary, parts=tuple(kept))
        return tuple(
            part.entry
            for part in kept
            if part.entry and part.entry in before and not any(d.id in there for d in hotplug.unplugged(part))
        )

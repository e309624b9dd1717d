"""What the daemon keeps of a VM on disk: its run record, for adoption, and its identity, for good.

Decides: what is in these records and where identities are.
Must not: say what a record means for a VM's state; that is the driver's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from attrs import field, frozen

from qsup.errors import StateFileError, from_oserror
from qsup.host import codec
from qsup.host.claims import Claim
from qsup.host.uids import allocate_uid
from qsup.plan.spec import Identity

#: Seconds since the epoch at the end of the year 9999, the last that has a name in RFC 3339.
LATEST = 253_402_300_799
#: The largest pid, and what no start time reaches.
PID_MAX = 1 << 22  # PID_LIMIT in linux/threads.h
TICKS_MAX = 1 << 63


def within(low: float, high: float) -> Callable[[object, Any, Any], None]:
    """A validator for a number of a record, which may have been tampered with; raises `ValueError`."""

    def check(_record: object, attribute: Any, value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}, which is not from {low} to {high}")

    return check


@frozen(kw_only=True)
class RunRecord:
    """All that a later daemon needs to find a running VM again, and to clean up after it.

    Written before the spawn without a `pid`, again with it, and whenever the rest changes.

    Args:
        name: the instance's name.
        uuid: its identity.
        boot_id: the boot it was started in; under another one it cannot be alive.
        pid, start_time: the process (`qsup.host.proc`), ``None`` before the spawn.
        uid: whom QEMU runs as.
        unit_digest: digest of the unit it was started from.
        argv: QEMU's command line.
        machine: the versioned machine type.
        started: wall clock, seconds since the epoch, for people.
        uptime: CLOCK_BOOTTIME seconds of the same moment, to compare.
        cgroups: directories of its cgroups.
        taps: names of its tap interfaces.
        bridges: bridges that go with their last port, if the daemon made them.
        claims: its claims on images.
        monitor: name of the monitor's socket in the run directory.
        state: the driver's own, JSON values: state, cause, restart counters...
    """

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    name: str
    uuid: str
    boot_id: str
    uid: int
    unit_digest: str
    argv: tuple[str, ...]
    machine: str
    started: float = field(validator=within(0, LATEST))
    uptime: float = field(validator=within(0, LATEST))
    pid: int | None = field(default=None, validator=within(1, PID_MAX))
    start_time: int | None = field(default=None, validator=within(0, TICKS_MAX))
    cgroups: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    monitor: str = "qmp"
    state: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class IdentityRecord:
    """What stays with a VM over its starts.

    Args:
        name: the instance's name.
        uuid: the SMBIOS UUID and the seed of its MAC addresses.
        machines: machine alias -> versioned type, as first resolved.
        uid: whom its QEMU runs as, ``None`` where the daemon has no uids to give.
    """

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    name: str
    uuid: str
    machines: Mapping[str, str] = field(factory=dict)
    uid: int | None = None

    @property
    def identity(self) -> Identity:
        """What planning needs of it."""
        return Identity(name=self.name, uuid=self.uuid, machines=self.machines)

    def with_machine(self, alias: str, machine: str) -> IdentityRecord:
        """The same with one alias resolved; an alias that has been resolved before keeps its type."""
        return attrs.evolve(self, machines={alias: machine, **self.machines})


class IdentityStore:
    """The identities of all VMs, one file each.

    Args:
        directory: ``state/instances``; made at the first `save`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._given: set[int] | None = None

    def path(self, name: str) -> Path:
        """The file of one VM."""
        return self._directory / f"{name}.json"

    def load(self, name: str) -> IdentityRecord | None:
        """One VM's identity, ``None`` when it has none yet.

        Raises:
            StateFileError: its file is unreadable; it is left as it is, and no other identity may take its place.
        """
        try:
            record = codec.load(IdentityRecord, self.path(name))
        except StateFileError as error:
            if error.details.get("missing"):
                return None
            raise
        if record.name != name:
            raise StateFileError(f"{self.path(name)} is the identity of {record.name!r}", path=str(self.path(name)))
        return record

    def save(self, record: IdentityRecord) -> None:
        """Write one VM's identity. Blocks for the disk: call it in a worker thread.

        Raises:
            NoSpaceError, HostError: see `qsup.host.atomic.write_atomic`.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise from_oserror(error, f"could not make {self._directory}") from error
        codec.save(record, self.path(record.name))

    def give_uid(self, seed: str, *, within: range) -> int:
        """A uid that no VM has, for one that has none yet; nobody else gets it while this daemon lives.

        The files are read once: two first starts at a time must not be given the same uid, whoever is saved first.

        Raises:
            HostError: none is left.
        """
        if self._given is None:
            self._given = set(self.uids())
        uid = allocate_uid(seed, taken=self._given, within=within)
        self._given.add(uid)
        return uid

    def uids(self) -> Iterator[int]:
        """Every uid given to a VM, whether or not its unit still exists. Unreadable files have none to say."""
        for path in sorted(self._directory.glob("[!.]*.json")):
            try:
                record = codec.load(IdentityRecord, path)
            except StateFileError:  # that VM cannot start until it is repaired, and says so itself
                continue
            if record.uid is not None:
                yield record.uid


def new_uuid() -> str:
    """A UUID for a VM that has none yet."""
    return str(uuid.uuid4())

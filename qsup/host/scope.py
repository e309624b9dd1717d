"""A scope of systemd's for each VM: where systemd runs the host, its cgroups are had by asking it.

Decides: what a VM's scope is called, what systemd is told of it, and what is done where it cannot be had.
Must not: know how D-Bus is spoken (`qsup.host.systemd`), or which limits a unit wants.

A scope is made of processes that are there already, so a VM's comes into being beside QEMU's start-up, with its limits,
and is waited for before the guest runs. Its limits systemd keeps, and writes again whenever it looks at the cgroup; so
they are changed by asking it, too, and read back from the kernel. When the scope is empty, systemd removes it. Where it
does not answer, or refuses, the VM gets a cgroup in the daemon's own subtree, and a warning.

Source: systemd.scope(5), systemd.resource-control(5), systemd.unit(5), "Control Group APIs and Delegation".
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio
from attrs import frozen

from qsup.errors import HostError
from qsup.host import cpuset, limits, systemd
from qsup.host.cgroup import Cgroup, CgroupManager, CgroupTree
from qsup.host.counted import SharedOomKills
from qsup.host.hierarchies import Hierarchies, detect, parse_hierarchies
from qsup.host.limits import Devices
from qsup.host.systemd import Property, Refused, Systemd

_log = structlog.get_logger()

#: Scopes that are asked for at once: systemd is one thread, and a bus allows so many connections.
_AT_ONCE = 8
_EXISTS = "org.freedesktop.systemd1.UnitExists"
#: Seconds in which what is left of a scope of the same name goes.
_LEFTOVER = 2.0
_POLL = 0.005  # seconds between two looks
_INFINITY = (1 << 64) - 1
SLICE = "qsup.slice"
#: What systemd stops before scopes when the host shuts down, and what it stops after them: VMs stand on it.
_STOPPED_BEFORE, _STOPPED_AFTER = ("qsup-guests.service",), ("network.target", "remote-fs.target")


def escape(name: str) -> str:
    """A VM's name as part of a unit's, as ``systemd-escape`` has it: what it escapes no separator of ours can be."""
    kept = re.sub(r"[^A-Za-z0-9:_.]", lambda found: "".join(f"\\x{byte:02x}" for byte in found[0].encode()), name)
    return f"\\x2e{kept[1:]}" if kept.startswith(".") else kept


def _number(limit: Any) -> int:
    return _INFINITY if limit is None else int(limit)


#: Of each limit the property that says it.
_PROPERTIES: Mapping[str, Callable[[Any], Sequence[Property]]] = {
    "cpu": lambda limit: [_property("CPUQuotaPerSecUSec", None if limit is None else limit * 1000)],
    "cpu_weight": lambda limit: [_property("CPUWeight", limit)],
    "memory": lambda limit: [_property("MemoryMax", limit)],
    "memory_high": lambda limit: [_property("MemoryHigh", limit)],
    "pids": lambda limit: [_property("TasksMax", limit)],
    "swap": lambda limit: [_property("MemorySwapMax", limit)],
    "io_weight": lambda limit: [_property("IOWeight", limit)],
    "io_read_bps": lambda limit: _of_devices("IOReadBandwidthMax", limit),
    "io_write_bps": lambda limit: _of_devices("IOWriteBandwidthMax", limit),
    "io_read_iops": lambda limit: _of_devices("IOReadIOPSMax", limit),
    "io_write_iops": lambda limit: _of_devices("IOWriteIOPSMax", limit),
    "cpuset_cpus": lambda limit: [_mask("AllowedCPUs", limit)],
    "cpuset_mems": lambda limit: [_mask("AllowedMemoryNodes", limit)],
}


def _property(name: str, limit: int | None) -> Property:
    return Property(name=name, signature="t", value=_number(limit))


def _mask(name: str, numbers: frozenset[int] | None) -> Property:
    """A bit for each number, the lowest byte first; none: no limit."""
    bits = sum(1 << number for number in numbers or ())
    return Property(name=name, signature="ay", value=bits.to_bytes((bits.bit_length() + 7) // 8, "little"))


def _of_devices(name: str, limit: Devices | None) -> Sequence[Property]:
    """None of what there was, and then those: systemd keeps what it is not told of."""
    none = Property(name=name, signature="a(st)", value=[])
    those = [(f"/dev/block/{device}", amount) for device, amount in limit or ()]
    return [none, Property(name=name, signature="a(st)", value=those)] if those else [none]


def properties_of(wanted: Mapping[str, Any]) -> list[Property]:
    """What systemd is told of limits; pure.

    Args:
        wanted: by the names of the fields of `qsup.host.limits.Limits`; ``None``: no limit.
    """
    return [each for name, limit in wanted.items() for each in _PROPERTIES[name](limit)]


@frozen(kw_only=True)
class Place:
    """Where the scopes of one daemon are.

    Args:
        tag: differs between daemons on one host; see `qsup.host.rundir.Layout.tag`.
        systemd: who makes them.
        root: the cgroup of all that this systemd has.
    """

    tag: str
    systemd: Systemd
    root: Path

    @property
    def directory(self) -> Path:
        """The cgroup of the slice that all are in, those of other daemons, too: nobody would end an empty one."""
        return self.root / SLICE

    def unit(self, name: str) -> str:
        """The scope of a VM."""
        return f"{self.tag}-{escape(name)}.scope"

    def has(self, controller: str) -> bool:
        """Whether this systemd has a controller to give."""
        return controller in limits.words(self.root / "cgroup.controllers")


class Scope(Cgroup):
    """One VM's scope, or what it has instead.

    Args:
        unit: its name.
        place: where it is.
        own: makes what it has instead.
        shared: counts OOM kills: systemd may remove the scope before anybody has read its own count.
        turns: bounds how many ask systemd at once.
        is_there: it was made earlier.
        description: what people read.
    """

    def __init__(
        self,
        unit: str,
        place: Place,
        *,
        own: Callable[[], Cgroup],
        shared: SharedOomKills,
        turns: trio.CapacityLimiter,
        is_there: bool = False,
        description: str = "",
    ) -> None:
        super().__init__([place.directory / unit], shared=shared)
        self._unit = unit
        self._place = place
        self._own = own
        self._turns = turns
        self._is_there = is_there
        self._description = description
        self._instead: Cgroup | None = None
        self._wanted: Mapping[str, Any] = {}

    # what it is made of

    async def join(self, *pids: int) -> str:
        """See `Cgroup.join`. The first of them are what it is made of, where that has not been done."""
        if not self._is_there:
            try:
                async with self._turns:
                    await self._make(pids)
            except HostError as error:
                _log.warning("a VM has no scope", unit=self._unit, why=error.message)
                await self._do_without(error.message)
            self._is_there = True
        return await super().join(*pids)

    async def _make(self, pids: Sequence[int]) -> None:
        until = trio.current_time() + _LEFTOVER
        while (result := await self._ask_for_it(pids, until)) is None:
            await self._forget()
            await trio.sleep(_POLL)
        if result != "done":
            raise HostError(f"systemd did not start {self._unit}: {result}")
        self.missed = self._not_kept(self._wanted)
        if self.shared is not None:
            self.shared.forget()

    async def _ask_for_it(self, pids: Sequence[int], until: float) -> str | None:
        """The result of its start, ``None`` where one of the same name is just going."""
        try:
            async with self._place.systemd.connected() as connection:
                return await connection.start_transient(self._unit, self._properties(pids))
        except Refused as error:
            if error.name != _EXISTS or trio.current_time() > until:
                raise
            if others := ", ".join(map(str, sorted(self.members()))):
                raise HostError(f"{self._unit} is there already, with processes {others}") from error
        return None

    def _properties(self, pids: Sequence[int]) -> list[Property]:
        known = {name: limit for name, limit in self._wanted.items() if not self.why_not(name)}
        said = [
            Property(name="Description", signature="s", value=self._description),
            Property(name="Slice", signature="s", value=SLICE),
            # all controllers, for what is counted; and no OOM kill in it has systemd end the rest
            Property(name="Delegate", signature="b", value=True),
            Property(name="CollectMode", signature="s", value="inactive-or-failed"),
            Property(name="PIDs", signature="au", value=list(pids)),
        ]
        if self._place.systemd.is_system:
            said.append(Property(name="Before", signature="as", value=list(_STOPPED_BEFORE)))
            said.append(Property(name="After", signature="as", value=list(_STOPPED_AFTER)))
        return said + properties_of({"pids": None} | known)

    async def _forget(self) -> None:
        """Have systemd let go of a scope that is over."""
        try:
            async with self._place.systemd.connected() as connection:
                await connection.call("ResetFailedUnit", "s", self._unit)
        except Refused:
            pass  # it has done so meanwhile, or is about to

    async def _do_without(self, why: str) -> None:
        self._instead = self._own()
        self.missed = await self._instead.change(self._wanted)
        self.paths = self._instead.paths  # by now with a cpuset of version 1 where that keeps a fence
        self.shared = self._instead.shared
        self.absence = self._instead.absence
        self.trouble = f"it has no scope of systemd's: {why}"

    # limits

    def why_not(self, name: str) -> str:
        """See `Cgroup.why_not`."""
        if self._instead is not None:
            return super().why_not(name)
        controller = limits.controller(name)
        return "" if self._place.has(controller) else f"systemd has no {controller} controller to give"

    def impose(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Cgroup.impose`: it will be made with them; one that is there systemd keeps to what it has been told."""
        self._wanted = wanted
        return {name: why for name in wanted if (why := self.why_not(name))}

    async def change(self, wanted: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Cgroup.change`."""
        if self._instead is not None:
            return await super().change(wanted)
        refused = {name: why for name, limit in wanted.items() if limit is not None and (why := self.why_not(name))}
        if refused:
            return refused
        try:
            async with self._turns, self._place.systemd.connected() as connection:
                await connection.set_properties(self._unit, properties_of(wanted))
        except HostError as error:
            return dict.fromkeys(wanted, error.message)
        # of a fence that is no more systemd (252) writes nothing, and the kernel keeps what there was
        none = {name: limit for name, limit in wanted.items() if name in cpuset.FILES and limit is None}
        return self._not_kept(wanted) | dict(await super().change(none))

    def _not_kept(self, wanted: Mapping[str, Any]) -> dict[str, str]:
        """Why the kernel does not keep what systemd was told: it ignores what it cannot write."""
        try:
            found = limits.read(self.paths)
        except HostError as error:
            return dict.fromkeys(wanted, error.message)
        refused = {name: self.why_not(name) for name, limit in wanted.items() if limit is not None}
        for name, limit in wanted.items():
            if not refused.get(name) and not limits.agree(name, limit, getattr(found, name)):
                refused[name] = "systemd took it, and the kernel did not"
        return {name: why for name, why in refused.items() if why}

    # its end

    def _is_gone(self, path: Path) -> bool:
        """See that it goes: systemd does that, who would not learn that it is empty if somebody else did."""
        return super()._is_gone(path) if self._instead is not None else not path.exists()

    def was_oom_killed(self, before: int) -> bool:
        """See `Cgroup.was_oom_killed`."""
        if self._instead is not None or self.shared is None:
            return super().was_oom_killed(before)
        if not self.paths[0].exists():
            return self.shared.take()
        killed = self.oom_kills() - before
        self.shared.told(killed)
        return killed > 0


class ScopeManager:
    """VMs in scopes of systemd's.

    Args:
        place: where they are.
        tree: what VMs have that get none.
    """

    def __init__(self, place: Place, tree: CgroupManager) -> None:
        self._place = place
        self._tree = tree
        self._shared = SharedOomKills(place.directory)
        self._turns = trio.CapacityLimiter(_AT_ONCE)

    def create(self, name: str, description: str = "") -> Cgroup:
        """See `qsup.host.cgroup.CgroupManager.create`."""
        words = f"QEMU virtual machine {name}"
        return self._scope(name, description=f"{words}: {description}" if description else words)

    def _scope(self, name: str, **more: Any) -> Scope:
        own, unit = partial(self._tree.create, name), self._place.unit(name)
        return Scope(unit, self._place, own=own, shared=self._shared, turns=self._turns, **more)

    def reopen(self, name: str, paths: Sequence[str]) -> Cgroup:
        """See `qsup.host.cgroup.CgroupManager.reopen`."""
        own = self._place.directory / self._place.unit(name)
        if str(own) not in paths:
            found = self._tree.reopen(name, paths)
            found.trouble = "it has no scope of systemd's, and gets one when it is started anew"
            return found
        if not own.is_dir():
            return self.create(name)  # its launch was cut short before it was made; whoever completes that makes it
        return self._scope(name, is_there=True)


def manager(tag: str, env: Mapping[str, str]) -> CgroupManager:
    """Whoever makes cgroups here: systemd where it runs the host and keeps all cgroups in version 2, else the daemon.

    Args:
        tag: see `Place`.
        env: names the bus where that is elsewhere than usual.
    """
    hierarchies, uid = detect(), os.geteuid()
    tree = CgroupTree(tag, hierarchies=hierarchies)
    found = systemd.find(env, uid)
    others = hierarchies.v1.keys() - {"cpuset"}  # which alone may be mounted apart, and is not systemd's then
    if found is None or others or (uid and not (os.path.exists(found.bus) and lingers(uid))):
        return tree
    root = _root(uid)
    return tree if root is None else ScopeManager(Place(tag=tag, systemd=found, root=root), tree)


def lingers(uid: int, *, directory: Path = Path("/var/lib/systemd/linger")) -> bool:
    """Whether a user's systemd outlives the user's sessions (``loginctl enable-linger``).

    Any other ends with the last of them, and with it all that is in its scopes; VMs are to run on.
    """
    try:
        return (directory / pwd.getpwuid(uid).pw_name).exists()
    except KeyError:  # a user without a name
        return False


def _root(uid: int) -> Path | None:
    """The cgroup of all that the systemd of a user has, 0 for the host's; ``None`` where that is not to be found."""
    mounts = Path("/proc/self/mountinfo").read_text()
    return root_of(parse_hierarchies(mounts, Path("/proc/1/cgroup").read_text()), uid)


def root_of(first: Hierarchies, uid: int) -> Path | None:
    """The same, by where process 1 is: systemd itself is in ``init.scope``, a user's in one of its own."""
    if first.unified is None or first.unified.name != "init.scope":
        return None
    root = first.unified.parent
    if uid:
        root = root / "user.slice" / f"user-{uid}.slice" / f"user@{uid}.service"
    return root if (root / "init.scope").is_dir() else None

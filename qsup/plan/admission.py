"""Whether one more promise can be kept beside those that were given. Pure.

Decides: which VM is refused, and the arithmetic that is told of it.
Must not: keep the promises (`qsup.instance.capacity`), or say what a VM is promised (`qsup.plan.capacity`).

A promise is refused where it asks for more than its VM has already, and then

- all memory besides huge pages, the guests' and QEMU's own, would be more than ``(memory - reserve) * overcommit``;
- there would be a set of nodes of which that is so for what is bound to these alone, without the reserve;
- there would be one with fewer huge pages of a size than are promised on these alone;
- the vCPUs of VMs without CPUs of their own would be more than the other CPUs times their overcommit.

So it depends on who was promised what, and never on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen

from qsup.errors import CapacityError
from qsup.plan.capacity import SPARE, Host, Nodes, Promise, Room
from qsup.plan.explained import count, nodes
from qsup.plan.hostmemory import in_mib
from qsup.plan.spread import Spread
from qsup.unit.quantity import alternatives, format_size

#: How many VMs a refusal names.
_NAMED = 3
_ASK = "`qsupctl capacity --vms` shows who was promised what, and an administrator may {force}"
_FORCE = "`qsupctl start --force`"
#: A change of a VM that runs cannot be forced, and a start of it does nothing.
_FORCE_LATER = f"stop it, and start it so with {_FORCE}"


def check_fits(wanted: Promise, others: Iterable[Promise], host: Host, held: Promise | None = None) -> None:
    """See that a VM can be promised something.

    Args:
        others: what was promised to others.
        held: what this VM was promised before, which it keeps in any case.

    Raises:
        CapacityError: why not, with the arithmetic.
    """
    before = held or Promise(name=wanted.name, guest=(), own=0, vcpus=0)
    those = [other for other in others if other.name != wanted.name]
    try:
        _check_memory(wanted, before, those, host)
        _check_bound(wanted, before, those, host)
        for size in sorted({part.page for part in wanted.guest if part.page}):
            _check_pages(wanted, before, those, host, size)
        _check_vcpus(wanted, before, those, host)
    except CapacityError as error:
        error.hint = f"{error.hint}; {_ASK.format(force=_FORCE if held is None else _FORCE_LATER)}"
        raise


def _check_memory(wanted: Promise, held: Promise, others: Sequence[Promise], host: Host) -> None:
    limit, bounds = host.memory_limit, host.bounds
    shares = {other.name: other.memory for other in others}
    if limit is None or wanted.memory <= max(held.memory, limit - sum(shares.values())):
        return
    guest, own = wanted.memory - wanted.own, f"{in_mib(wanted.own)} for QEMU itself"
    basis = f"{'[capacity] memory is' if bounds.memory else 'the host has'} {in_mib(host.memory)}"
    if bounds.memory_reserve:
        basis += f", {in_mib(bounds.memory_reserve)} of it are kept for the host"
    if bounds.memory_overcommit != 1:
        basis += (
            f", {bounds.memory_overcommit:g} times {'the rest' if bounds.memory_reserve else 'that'} may be promised"
        )
    raise _refusal(
        wanted.name,
        f"{in_mib(wanted.memory)} of memory ({f'{in_mib(guest)} for its guest, ' if guest else ''}{own})",
        _Sum(wanted=wanted.memory, limit=limit, shares=shares, basis=basis),
        "give it less memory, stop another VM, or let more be promised ([capacity] in qsupd.toml)",
    )


def _check_bound(wanted: Promise, held: Promise, others: Sequence[Promise], host: Host) -> None:
    """The same of what is bound to nodes."""
    room = host.node_limits()

    def bound(promise: Promise) -> Mapping[Nodes, int]:
        return {on: size for on, size in promise.by_nodes(0, frozenset(room or ())).items() if on}

    if room is None or (lack := _lack(bound, wanted, held, others, room)) is None:
        return
    basis = f"of {nodes(sorted(lack.full))} {in_mib(lack.limit)} may be promised"
    raise _refusal(
        wanted.name,
        f"{in_mib(lack.wanted)} of memory on {nodes(sorted(lack.on))}",
        _Sum(wanted=lack.wanted, limit=lack.limit, shares=lack.shares, basis=basis),
        "name other [memory] nodes, give it less memory, or stop another VM",
    )


def _check_pages(wanted: Promise, held: Promise, others: Sequence[Promise], host: Host, size: int) -> None:
    """The same of huge pages of one size, bound or not."""
    room = host.pages(size)
    everywhere = frozenset(room)

    def pages(promise: Promise) -> Mapping[Nodes, int]:
        parts = promise.by_nodes(size, everywhere).items()
        return {(on or everywhere) | {SPARE}: -(-part // size) for on, part in parts}

    if (lack := _lack(pages, wanted, held, others, room)) is None:
        return
    where = "" if lack.on == everywhere else f" on {nodes(sorted(lack.on - {SPARE}))}"
    there = "the host" if lack.full == everywhere else nodes(sorted(lack.full - {SPARE}))
    basis = f"of {there} {lack.limit} may be promised"
    raise _refusal(
        wanted.name,
        f"{lack.wanted} huge pages of {format_size(size)}{where} for {format_size(lack.wanted * size)} of memory",
        _Sum(wanted=lack.wanted, limit=lack.limit, shares=lack.shares, basis=basis, told=str),
        "reserve more huge pages, give it less memory, or stop another VM",
    )


@frozen(kw_only=True)
class _Lack:
    """An amount that finds no room.

    Args:
        on: the nodes that it may be on.
        full: those that are too full, these among them.
        limit: what there is on these.
        shares: what is promised there and nowhere else, by VM.
    """

    wanted: int
    on: Nodes
    full: Nodes
    limit: int
    shares: Mapping[str, int]


def _lack(
    amounts: Callable[[Promise], Mapping[Nodes, int]],
    wanted: Promise,
    held: Promise,
    others: Iterable[Promise],
    room: Room,
) -> _Lack | None:
    """What of a promise finds no room on nodes, if anything.

    Args:
        amounts: of a promise, by the nodes that they may be on.
    """
    if not amounts(wanted):
        return None
    spread, given, kept = Spread(room), {other.name: amounts(other) for other in others}, amounts(held)
    for each in given.values():
        for on, amount in each.items():
            spread.lay(amount, on)
    for on, amount in amounts(wanted).items():
        spread.lay(min(amount, kept.get(on, 0)), on)
    for on, amount in amounts(wanted).items():
        if full := spread.lay(max(amount - kept.get(on, 0), 0), on):
            shares = {name: sum(n for where, n in each.items() if where <= full) for name, each in given.items()}
            return _Lack(wanted=amount, on=on, full=full, limit=sum(room[node] for node in full), shares=shares)
    return None


def _check_vcpus(wanted: Promise, held: Promise, others: Sequence[Promise], host: Host) -> None:
    limit, ratio = host.vcpu_limit, host.bounds.cpu_overcommit
    shares = {other.name: other.shared_vcpus for other in others}
    # who takes CPUs for itself leaves less to the others
    asks = wanted.shared_vcpus > held.shared_vcpus or (wanted.exclusive and not held.exclusive)
    if limit is None or not asks or wanted.shared_vcpus + sum(shares.values()) <= limit:
        return
    basis = f"{count(host.shared_cpus, 'CPU')} can be shared, and {ratio:g} vCPUs of each may be promised"
    raise _refusal(
        wanted.name,
        count(wanted.vcpus, "vCPU") + (" with CPUs of their own" if wanted.exclusive else ""),
        _Sum(wanted=wanted.shared_vcpus, limit=limit, shares=shares, basis=basis, told=str),
        "give it fewer vCPUs, stop another VM, or let more be promised ([capacity] cpu-overcommit in qsupd.toml)",
    )


@frozen(kw_only=True)
class _Sum:
    """The arithmetic of a refusal.

    Args:
        shares: of what may be promised, by VM.
        basis: where the limit comes from, in words.
        told: spells an amount.
    """

    wanted: int
    limit: int
    shares: Mapping[str, int]
    basis: str
    told: Callable[[int], str] = in_mib

    @property
    def left(self) -> int:
        """What may be promised still."""
        return max(self.limit - sum(self.shares.values()), 0)

    def words(self) -> str:
        """All of it, the largest shares by name."""
        missing = self.told(self.wanted - self.left)
        promised = self.told(sum(self.shares.values()))
        left = f"{self.told(self.left)} are left to promise"
        return f"{left}: {missing} are missing ({self.basis}; {promised} are promised{self._to()})"

    def _to(self) -> str:
        largest = sorted(
            ((name, share) for name, share in self.shares.items() if share), key=lambda each: (-each[1], each[0])
        )
        named = [f"{self.told(share)} to {name}" for name, share in largest[:_NAMED]]
        if rest := largest[_NAMED:]:
            named.append(f"{self.told(sum(share for _, share in rest))} to {count(len(rest), 'other')}")
        return f": {alternatives(named, 'and')}" if named else ""


def _refusal(name: str, what: str, arithmetic: _Sum, hint: str) -> CapacityError:
    return CapacityError(
        f"wants {what}, and {arithmetic.words()}",
        instance=name,
        hint=hint,
        wanted=arithmetic.wanted,
        left=arithmetic.left,
    )

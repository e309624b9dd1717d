"""What differs between two versions of a unit, key by key. Pure.

Decides: how a difference is told (the key, both values as the files would spell them, what it needs to take effect),
and that entries of arrays of tables are the same where their ids are.
Must not: know which of the two runs, or carry a change out.

What a unit leaves to another key is filled in first: ``bus = "virtio"`` differs from no ``bus`` in nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attrs import evolve, frozen

from qsup.unit.effective import effective_bus, effective_max_vcpus, effective_resize, effective_video, machine_memory
from qsup.unit.keys import Applies, keys_of, sections_of
from qsup.unit.model import Unit
from qsup.unit.write import section_values


@frozen(kw_only=True)
class Change:
    """One difference.

    Args:
        key: ``cpu.vcpus``, ``disk.root.path``; ``disk.root`` for a whole disk that came or went, ``disk`` where only
            the order differs.
        old, new: JSON values as a unit file spells them; ``None`` where there is none.
        needs: what makes the new value count.
    """

    key: str
    old: Any
    new: Any
    needs: Applies


def compare(old: Unit, new: Unit) -> tuple[Change, ...]:
    """Everything that differs, in the order of the model; nothing when the two mean the same."""
    before, after = _with_base(*_with_room(_filled(old), _filled(new)))
    return tuple(_sections(Unit, before, after, ()))


def _filled(unit: Unit) -> Unit:
    return evolve(
        unit,
        cpu=evolve(unit.cpu, max_vcpus=effective_max_vcpus(unit)),
        disks=tuple(evolve(disk, bus=effective_bus(unit, disk)) for disk in unit.disks),
        # the guest does not see them, so their order is none of the machine's
        iothreads=tuple(sorted(unit.iothreads, key=lambda iothread: iothread.id)),
        display=evolve(unit.display, video=effective_video(unit)),
    )


def _with_room(old: Unit, new: Unit) -> tuple[Unit, Unit]:
    """Units whose guests have balloons say how large their machines are where one of them does."""
    is_same = (old.memory.max, old.memory.resize) == (new.memory.max, new.memory.resize)
    if is_same or not effective_resize(old) == effective_resize(new) == "balloon":
        return old, new
    return _with_max(old), _with_max(new)


def _with_base(old: Unit, new: Unit) -> tuple[Unit, Unit]:
    """A unit that does not say what its virtio-mem begins at is content with where that of the VM did."""
    if old.memory.min == new.memory.min or not effective_resize(old) == effective_resize(new) == "virtio-mem":
        return old, new
    base = old.memory.min or old.memory.size
    return _with_min(old, base), _with_min(new, new.memory.min or base)


def _with_min(unit: Unit, base: int) -> Unit:
    return evolve(unit, memory=evolve(unit.memory, min=base))


def _with_max(unit: Unit) -> Unit:
    return evolve(unit, memory=evolve(unit.memory, max=machine_memory(unit), resize="balloon"))


def _sections(cls: type[Any], old: Any, new: Any, path: tuple[str, ...]) -> Iterator[Change]:
    for name, (attribute, facts) in keys_of(cls).items():
        before, after = getattr(old, attribute.name), getattr(new, attribute.name)
        if before != after:
            values = facts.kind.format(before), facts.kind.format(after)
            yield _change((*path, name), *values, facts.needs(old, new))
    for name, (attribute, nested, section) in sections_of(cls).items():
        before, after, inner = getattr(old, attribute.name), getattr(new, attribute.name), (*path, name)
        if before == after:
            continue
        if not section.many:
            yield from _sections(nested, before, after, inner)
        elif "id" in keys_of(nested):
            yield from _entries(nested, before, after, inner)
        else:
            whole = [[section_values(nested, entry) for entry in entries] for entries in (before, after)]
            yield _change(inner, whole[0], whole[1], Applies.RESTART)


def _entries(cls: type[Any], old: Sequence[Any], new: Sequence[Any], path: tuple[str, ...]) -> Iterator[Change]:
    """Of an array of tables with ids: those that went, changed and came, and their order where it is another."""
    before, after = ({entry.id: entry for entry in entries} for entries in (old, new))
    for name, entry in before.items():
        if name in after:
            yield from _sections(cls, entry, after[name], (*path, name))
        else:
            yield _change((*path, name), section_values(cls, entry), None, Applies.RESTART)
    for name, entry in after.items():
        if name not in before:
            yield _change((*path, name), None, section_values(cls, entry), Applies.RESTART)
    # devices are numbered in the order of their entries, so the guest sees another order as other hardware
    kept = [name for name in before if name in after], [name for name in after if name in before]
    if kept[0] != kept[1]:
        yield _change(path, *kept, Applies.RESTART)


def _change(path: tuple[str, ...], old: Any, new: Any, needs: Applies) -> Change:
    return Change(key=".".join(path), old=old, new=new, needs=needs)


def needs_restart(changes: Sequence[Change]) -> bool:
    """Whether something only counts once the VM has been started anew."""
    return any(change.needs is Applies.RESTART for change in changes)

"""What of a change is to outlast the VM's present life: written to its unit's files, or refused beforehand.

Decides: that a change is rehearsed before the VM hears of it, and what is said of one that is not written down.
Must not: know how a file is written (`qsup.catalog` does), or what can be changed while a VM runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from attrs import frozen

from qsup.errors import ChangeError, QsupError
from qsup.instance.drives import check_drive
from qsup.instance.services import Persist
from qsup.instance.verdict import AT_ONCE, AT_START, Said, keys_said, result_of
from qsup.unit.compare import compare
from qsup.unit.compose import amend, pick
from qsup.unit.entries import entry_of
from qsup.unit.keys import Applies
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit
from qsup.unit.write import values_of

_ONLY_RUNNING = "with --runtime only the VM is changed, until it ends"


@frozen(kw_only=True, eq=False)
class Filing:
    """The files of one VM's unit.

    Args:
        name: the VM's.
        wanted: whether a change is to be written down at all.
        on_filed: told the unit as its files say it from now on.
        overrule: entered while changes are written: whatever is under way does not write their keys over.
    """

    name: str
    wanted: bool
    persist: Persist
    on_filed: Callable[[LoadedUnit], None]
    overrule: Callable[[Mapping[str, Any]], AbstractAsyncContextManager[None]] = lambda _: nullcontext()

    async def rehearse(self, changes: Mapping[str, Any], replaced: Sequence[str] = ()) -> Unit | None:
        """See that a change can be written down: the unit as its files say it now, ``None`` where nothing is wanted.

        Args:
            replaced: entries of which the changes say all there is.

        Raises:
            QsupError: why it cannot.
        """
        if not self.wanted:
            return None
        try:
            return (await self.persist(self.name, changes, replaced=replaced, rehearsal=True)).unit
        except QsupError as error:
            error.hint = f"{error.hint}; {_ONLY_RUNNING}" if error.hint else _ONLY_RUNNING
            raise

    async def write(self, changes: Mapping[str, Any], replaced: Sequence[str] = (), *, done: str = "") -> None:
        """Write a change down, if that is wanted; the same once more changes nothing.

        Args:
            done: what is true of the VM already, for the words of a failure.

        Raises:
            QsupError: it could not be written, and where that leaves the VM.
        """
        if not self.wanted:
            return
        try:
            async with self.overrule(changes):
                loaded = await self.persist(self.name, changes, replaced=replaced)
        except QsupError as error:
            if done:
                error.message = f"{done}, but that could not be written down: {error.message}"
                error.hint = "it is so until the VM ends; `qsupctl set` writes it once that is possible"
            raise
        self.on_filed(loaded)


def check_same(entries: Sequence[str], after: Unit, unit: Unit) -> None:
    """See that entries which the files do not have yet, and are to have, are those that run.

    Args:
        after: as the files would say it.
        unit: as it is to run.

    Raises:
        ChangeError: one would be another at the next start.
    """
    for entry in entries:
        wanted = entry_of(unit, entry)
        if wanted is not None and entry_of(after, entry) != wanted:
            words = f"the VM's unit does not have {entry}, and these keys alone would make another of it"
            raise ChangeError(words, hint="say --runtime, or all of its keys")


def absent(entry: str) -> dict[str, Any]:
    """The change by which a unit has an entry no more."""
    section, _, name = entry.partition(".")
    return {section: [{"id": name, "present": False}]}


def with_besides(changes: Mapping[str, Any] | None, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Those of a request's changes that concern keys, with what else the unit is to say unless the request says it.

    Args:
        changes: ``None``: the unit says them already.
        keys: with what is to be said besides each, of sections that there is one of.
    """
    if changes is None:
        return {}
    found = pick(changes, tuple(keys))
    for section, values in (each for besides in keys.values() for each in besides.items()):
        unsaid = {name: value for name, value in values.items() if name not in changes.get(section, {})}
        found[section] = {**unsaid, **found.get(section, {})}
    return found


async def read_files(load: Callable[[str], Awaitable[LoadedUnit]], name: str) -> Mapping[str, Any] | None:
    """What a unit's files say now, every key; ``None`` where that cannot be read."""
    try:
        return values_of((await load(name)).unit)
    except QsupError:
        return None  # whoever writes to it next says why


def is_edited(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, key: str, besides: Mapping[str, Any]
) -> bool:
    """Whether files say something else of a key, or of what is to be said besides it, than they did; pure.

    >>> is_edited({"memory": {"size": "1G", "max": "2G"}}, {"memory": {"size": "1G", "max": "4G"}}, "memory.size", {})
    False
    """
    if before is None or now is None:
        return False
    keys = (key, *(f"{section}.{name}" for section, values in besides.items() for name in values))
    return pick(before, keys) != pick(now, keys)


async def file_only(arguments: Mapping[str, Any], filing: Filing, *, running: bool) -> Mapping[str, Any]:
    """Change a VM's unit and nothing else: it does not run, or is to be changed at its next start.

    Args:
        arguments: of ``set``; see `qsup.instance.change.carry_out`. ``force`` is about a guest, and means nothing here.
        running: it runs, so what the daemon alone acts on counts at once.

    Returns:
        The operation's result.

    Raises:
        QsupError: why it was not done.
    """
    changes = arguments["changes"]
    if changes is None:
        raise ChangeError("it does not run, and its next start takes its unit as it is", instance=filing.name)
    if not filing.wanted:
        words = "it does not run, so there is nothing to change but its unit"
        raise ChangeError(words, instance=filing.name, hint="start it first, or say --persist")
    before = await filing.rehearse(changes)
    assert before is not None
    if drive := arguments.get("drive"):
        check_drive(str(drive), before, filing.name)
    after = amend(before, changes, filing.name).unit
    found = [] if after is None else keys_said(compare(before, after), changes)
    said = [
        Said.of(change, AT_ONCE if running and change.needs is Applies.SUPERVISOR else AT_START) for change in found
    ]
    dry_run = bool(arguments.get("dry_run"))
    if not dry_run:
        await filing.write(changes)
    return result_of(said, changed=bool(found), dry_run=dry_run, persisted=True)

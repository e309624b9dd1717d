"""Changing keys of a VM that runs: each is judged first, then all are carried out.

Decides: what becomes of each key, in which order they are carried out, and what is so after one that failed.
Must not: know how something is attached or a key is changed (`qsup.instance.change` brings the means).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from qsup.errors import ChangeError, QsupError, UnitError
from qsup.instance import verdict
from qsup.instance.context import Context, Goal, LiveKeys
from qsup.instance.filing import Filing, check_same, with_besides
from qsup.instance.hardware import Hardware, entry_of, staying
from qsup.instance.verdict import Said, check_none_refused, keys_said, result_of, tell_all
from qsup.unit.compare import Change, compare
from qsup.unit.compose import amend, pick
from qsup.unit.entries import MOVABLE, check_known
from qsup.unit.keys import Applies
from qsup.unit.model import Unit


@frozen(kw_only=True)
class Means:
    """How a VM that runs can be changed.

    Args:
        live: who changes which keys.
        plan: see that entries can come, all together; `UnsupportedError`, `ChangeError`.
        attach: attaches them, all or none.
        check_can_go: see that an entry can be asked to go; `QsupError`.
        depart: asks for entries to go: that each has gone is a goal.
        again: what is named and is so by the unit, but may not be by QEMU: changes, what differs, the unit.
        sections: those whose entries can come.
    """

    live: Sequence[LiveKeys]
    plan: Callable[[Sequence[str], Unit, Context], None]
    attach: Callable[[Sequence[str], Unit, Context], Awaitable[None]]
    check_can_go: Callable[[str, Hardware], None]
    depart: Callable[[Sequence[str], Context], Awaitable[Sequence[Goal]]]
    again: Callable[[Mapping[str, Any], Sequence[Change], Unit], Sequence[Change]]
    sections: Collection[str]


async def set_keys(
    changes: Mapping[str, Any],
    context: Context,
    filing: Filing,
    means: Means,
    *,
    dry_run: bool,
    written: bool = False,
) -> Mapping[str, Any]:
    """Change keys of a VM that runs; entries that come are attached.

    Args:
        dry_run: only say what would become of each.
        written: the VM's unit says so already; what cannot be done now counts at its next start whatever is said here,
            and entries that have gone from it are detached.

    Returns:
        The operation's result.

    Raises:
        QsupError: why it was not done, with what is said of every key.
    """
    judged = judge_all(changes, context, means, lasts=filing.wanted, written=written)
    unit, found, coming, said = judged.unit, judged.found, judged.coming, judged.said
    check_none_refused(said)
    before = await filing.rehearse(changes, coming)
    if before is not None:
        # what the VM has already, and its unit has not
        known = {change.key for change in found}
        after = amend(before, changes, context.name).unit or before
        news = keys_said(compare(before, after), changes)
        check_same([change.key for change in news if change.old is None], after, unit)
        said += [Said.of(change, verdict.LIVE) for change in news if change.key not in known]
    if dry_run:
        return result_of(said, changed=False, dry_run=True, persisted=filing.wanted)
    live = [change for change in found if any(_is_to_be_done(change, each) for each in said)]
    told = await _apply(changes, live, said, unit, context, means, written=written)
    done = ", ".join(change.key for change in live)
    try:
        written_now = _with_reached(changes, [] if written else context.reached)
        await _write(written_now, [goal.key for goal in context.goals], coming, filing, done)
    except QsupError as error:
        raise tell_all(error, said) from error
    at_once = [each.key for each in said if each.applied == verdict.AT_ONCE]
    context.hardware.set_unit(with_only(context.hardware.unit, changes, at_once, context))
    # what is named and was so already is asked of the guest again all the same
    changed = any(each.old != each.new for each in said) or bool(context.goals) or context.again
    return result_of(said, changed=changed, dry_run=False, persisted=filing.wanted, told=told)


def _is_to_be_done(change: Change, said: Said) -> bool:
    """Whether QEMU is told of a change now; what a reset alone ends is on its way already."""
    told_now = said.applied == verdict.LIVE or (said.applied == verdict.AT_RESET and change.needs is Applies.RESET)
    return change.key == said.key and told_now


@frozen(kw_only=True)
class Judged:
    """What would become of changes.

    Args:
        unit: as it is to be.
        found: what differs from what runs, or may do so.
        coming: the entries that come.
        said: of each key; more than is found may be added.
    """

    unit: Unit
    found: Sequence[Change]
    coming: Sequence[str]
    said: list[Said]


def judge_all(changes: Mapping[str, Any], context: Context, means: Means, *, lasts: bool, written: bool) -> Judged:
    """Judge each key of some changes; nothing is done.

    Args:
        lasts: they are to be in the VM's unit, too.
        written: as for `set_keys`.

    Raises:
        UnitError: they make no unit.
        NoSuchDevice: see `qsup.unit.entries.check_known`.
    """
    if not written:
        check_known(changes, context.hardware.unit, "it")
    unit = amended(changes, context)
    found = keys_said(compare(context.hardware.unit, unit), changes)
    found = [*found, *means.again(changes, found, unit)]
    coming = coming_of(found, unit)
    why_not = _not_attachable(coming, unit, context, means)
    said = [
        _judge_going(change, context, means)
        if written and is_going(change, context.hardware)
        else _judge(change, unit, context, means, why_not, lasts=lasts)
        for change in found
    ]
    return Judged(unit=unit, found=found, coming=coming, said=[each.put_off() for each in said] if written else said)


def if_not_done(written: bool) -> str:
    """When a key counts that could not be changed after all; ``written``: as for `set_keys`."""
    return verdict.AT_START if written else verdict.REFUSED


def _with_reached(changes: Mapping[str, Any], reached: Sequence[Goal]) -> Mapping[str, Any]:
    """Changes with what the unit is to say besides of what came true at once."""
    more = with_besides(changes, {goal.key: goal.besides for goal in reached})
    return {**changes, **{section: {**changes[section], **values} for section, values in more.items()}}


async def _write(
    changes: Mapping[str, Any], goals: Sequence[str], coming: Sequence[str], filing: Filing, done: str
) -> None:
    """Write changes down, but for what the guest has yet to make true: that is written once it has."""
    words = f"{done} was changed while it runs" if done else ""
    try:
        await filing.write(_without(changes, goals), coming, done=words)
    except UnitError:
        if not goals:
            raise
        # the others make no unit without them: fewer vCPUs, and no more at most
        await filing.write(changes, coming, done=words)


def _without(changes: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Changes but for some keys of sections that there is one of."""
    kept = {
        section: {name: value for name, value in values.items() if f"{section}.{name}" not in keys}
        if isinstance(values, Mapping)
        else values
        for section, values in changes.items()
    }
    # an empty list says something: that there is none of its entries
    return {section: values for section, values in kept.items() if values or not isinstance(values, Mapping)}


async def _apply(
    changes: Mapping[str, Any],
    live: Sequence[Change],
    said: Sequence[Said],
    unit: Unit,
    context: Context,
    means: Means,
    *,
    written: bool,
) -> dict[str, Any]:
    """Have the VM do what can be done while it runs.

    Args:
        written: as for `set_keys`.

    Returns:
        What else is known of a key, by key.

    Raises:
        QsupError: something was not possible; its words and details say what was done before.
    """
    hardware, told, done, unsaid = context.hardware, dict[str, Any](), list[str](), list[str]()

    def is_done(keys: Sequence[str]) -> None:
        # what was done stays true when what comes next is not possible
        done.extend(keys)
        unsaid.extend(keys)
        before = hardware.unit
        hardware.set_unit(with_only(before, changes, unsaid, context))
        if hardware.unit is not before:
            unsaid.clear()  # else they make a unit only with what is done next: a place in the boot order, say

    try:
        if coming := coming_of(live, unit):
            await means.attach(coming, unit, context)
            is_done(coming)
        for keys in means.live:
            if theirs := [change for change in live if keys.concerns(change.key) and change.key not in coming]:
                told.update(await keys.apply(theirs, unit, context))
                is_done([change.key for change in theirs])
        # last: nothing brings back what the guest was asked to let go. Whoever cancels hears that before anything else
        going = [change.key for change in live if is_going(change, hardware)]
        context.goals[:0] = await means.depart(going, context)
    except QsupError as error:
        if done:
            error.message = f"{', '.join(done)} was changed, then: {error.message}"
        # nothing is written of what is not, and what is written waits for the next start
        lost = {change.key for change in live} if written else {each.key for each in said}
        given_up = lost.difference(done)
        told_of = [each.given_up(error, if_not_done(written)) if each.key in given_up else each for each in said]
        raise tell_all(error, told_of) from error
    return told


def amended(changes: Mapping[str, Any], context: Context) -> Unit:
    """The unit that runs, with changes; `UnitError`."""
    composed = amend(context.hardware.unit, changes, context.name)
    if composed.unit is None:
        raise UnitError(composed.diagnostics, instance=context.name, hint="nothing was changed")
    return composed.unit


def with_only(unit: Unit, changes: Mapping[str, Any], keys: Sequence[str], context: Context) -> Unit:
    """A unit with those of the changes that concern some keys; what went meanwhile does not come back."""
    composed = amend(unit, pick(changes, keys), context.name)
    return unit if composed.unit is None else composed.unit


def coming_of(found: Sequence[Change], unit: Unit) -> list[str]:
    """The entries that come, of some changes."""
    return [change.key for change in found if change.old is None and entry_of(unit, change.key) is not None]


def _judge(
    change: Change,
    unit: Unit,
    context: Context,
    means: Means,
    why_not: Mapping[str, QsupError | None],
    *,
    lasts: bool,
) -> Said:
    """What becomes of one change.

    Args:
        why_not: for each entry that comes, why it cannot while the VM runs.
    """
    error: QsupError | None
    try:
        if change.key in why_not:
            error = why_not[change.key]
        elif is_going(change, context.hardware) and _section(change.key) not in MOVABLE:
            error = staying(change.key)
        elif is_going(change, context.hardware):
            words = f"{change.key} is there, and goes only when the guest lets it go"
            error = ChangeError(words, hint=f"detach {change.key}")
        elif change.needs in (Applies.LIVE, Applies.RESET) and (keys := _whose(change, means)):
            keys.check(change, unit, context)
            error = None
        elif change.needs is Applies.SUPERVISOR and lasts:
            return Said.of(change, verdict.AT_ONCE)
        elif change.needs is Applies.SUPERVISOR:
            words = f"{change.key} is for the daemon, which goes by the unit's files"
            error = ChangeError(words, hint="say --persist")
        else:
            words = f"{change.key} cannot be changed while it runs"
            error = ChangeError(words, hint="change the unit (--persist), and restart the VM")
    except QsupError as refusal:
        return Said.refused(change, refusal)
    if error is None:
        return Said.of(change, verdict.AT_RESET if change.needs is Applies.RESET else verdict.LIVE)
    return Said.of(change, verdict.AT_START, error.message) if lasts else Said.refused(change, error)


def is_going(change: Change, hardware: Hardware) -> bool:
    """Whether a change is that an entry is there no more."""
    return change.new is None and entry_of(hardware.unit, change.key) is not None


def _judge_going(change: Change, context: Context, means: Means) -> Said:
    """What becomes of an entry that its unit has no more."""
    part = context.hardware.part(change.key)
    if part is not None and part.state == "leaving" and not context.again:
        why = f"{change.key} is being detached: the guest has yet to let it go, and a reset of it ends that"
        return Said.of(change, verdict.AT_RESET, why)
    try:
        means.check_can_go(change.key, context.hardware)
    except QsupError as refusal:
        return Said.refused(change, refusal)
    return Said.of(change, verdict.LIVE)


def _whose(change: Change, means: Means) -> LiveKeys | None:
    return next((keys for keys in means.live if keys.concerns(change.key)), None)


def _not_attachable(entries: Sequence[str], unit: Unit, context: Context, means: Means) -> dict[str, QsupError | None]:
    """Why each entry cannot come while the VM runs, ``None`` for one that can, beside those before it."""
    why_not: dict[str, QsupError | None] = {}
    for entry in entries:
        able = [other for other, why in why_not.items() if why is None]
        try:
            if context.hardware.part(entry) is None:  # else it is half there, which is taken up
                means.plan([*able, entry], unit, context)
        except QsupError as error:
            why_not[entry] = error
        else:
            why_not[entry] = None
    return why_not


def needs(
    changes: Sequence[Change], unit: Unit, means: Means, hardware: Hardware, context: Context | None
) -> tuple[Change, ...]:
    """What differs between a VM that runs and its unit, with what each needs of that VM.

    Args:
        unit: as the files say it.
        context: ``None`` where it cannot be had: what is usual for the key is said then.
    """
    coming = coming_of(changes, unit)
    if context is None:
        why_not: Mapping[str, QsupError | None] = {entry: None for entry in coming if _section(entry) in means.sections}
    else:
        why_not = _not_attachable(coming, unit, context, means)
    return tuple(
        evolve(change, needs=_needs_going(change.key, means, hardware))
        if is_going(change, hardware)
        else evolve(change, needs=_needs(change, unit, means, context, why_not))
        for change in changes
    )


def _needs_going(entry: str, means: Means, hardware: Hardware) -> Applies:
    part = hardware.part(entry)
    if part is not None and part.state == "leaving":
        return Applies.RESET
    try:
        means.check_can_go(entry, hardware)
    except QsupError:
        return Applies.RESTART
    return Applies.LIVE


def _needs(
    change: Change,
    unit: Unit,
    means: Means,
    context: Context | None,
    why_not: Mapping[str, QsupError | None],
) -> Applies:
    if change.old is None and entry_of(unit, change.key) is not None:
        return Applies.LIVE if change.key in why_not and why_not[change.key] is None else Applies.RESTART
    keys = _whose(change, means)
    if keys is None or change.needs not in (Applies.LIVE, Applies.RESET) or context is None:
        return change.needs
    try:
        keys.check(change, unit, context)
    except QsupError:
        return Applies.RESTART
    return change.needs


def _section(entry: str) -> str:
    return entry.partition(".")[0]

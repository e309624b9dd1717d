"""What becomes of each key that is to be changed. Pure.

Decides: the words for when a key counts, how several refusals are told as one, and how a result names them all.
Must not: find out what can be changed (`qsup.instance.change` does), or change anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from qsup.errors import ChangeError, QsupError
from qsup.unit.compare import Change

#: When a key counts: it does, at the guest's next reset, at the VM's next start, by the daemon alone; or never.
LIVE, AT_RESET, AT_START, AT_ONCE, REFUSED = "live", "reset", "start", "daemon", "refused"


@frozen(kw_only=True)
class Said:
    """What is said of one key.

    Args:
        key: such as ``cpu.vcpus``; ``disk.data`` for an entry that comes.
        old, new: its values as a unit file spells them.
        applied: when the new one counts.
        why: not now, or not at all; ``""`` where nothing stands in the way.
        error: of one that is refused.
    """

    key: str
    old: Any
    new: Any
    applied: str
    why: str = ""
    error: QsupError | None = None

    @classmethod
    def of(cls, change: Change, applied: str, why: str = "") -> Said:
        """What is said of a change."""
        return cls(key=change.key, old=change.old, new=change.new, applied=applied, why=why)

    @classmethod
    def refused(cls, change: Change, error: QsupError) -> Said:
        """That a change is not possible."""
        return cls(key=change.key, old=change.old, new=change.new, applied=REFUSED, why=error.message, error=error)

    def given_up(self, error: QsupError, applied: str) -> Said:
        """The same of one that was possible, and came after another that failed."""
        return evolve(self, applied=applied, why=error.message)

    def put_off(self) -> Said:
        """The same of a change that its unit says already: what is not possible now waits for the VM's next start."""
        return self if self.error is None else evolve(self, applied=AT_START, error=None)

    def values(self) -> dict[str, Any]:
        """As a result holds it, under the key."""
        shown = {"applied": self.applied, "old": self.old, "new": self.new}
        return shown | ({"why": self.why} if self.why else {})


def keys_said(found: Sequence[Change], changes: Mapping[str, Any]) -> list[Change]:
    """Those of some differences that a request names; what only follows from another key, or is an order, is none."""
    named = set(_named(changes, ""))
    return [
        change
        for change in found
        if any(f"{change.key}.".startswith(f"{key}.") or key.startswith(f"{change.key}.") for key in named)
        and "." in change.key
    ]


def _named(values: Mapping[str, Any], place: str) -> Iterator[str]:
    for name, value in values.items():
        here = f"{place}{name}"
        if isinstance(value, Mapping):
            yield from _named(value, f"{here}.")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) and "id" in each for each in value):
            for each in value:
                yield from _named(each, f"{here}.{each['id']}.")
        else:
            yield here


def check_none_refused(said: Sequence[Said]) -> None:
    """See that every key is possible.

    Raises:
        QsupError: the one that is not, or all that are not; its details have what is said of every key.
    """
    errors = [each.error for each in said if each.error is not None]
    if not errors:
        return
    if len(errors) > 1:
        words = "; ".join(dict.fromkeys(error.message for error in errors))
        raise tell_all(ChangeError(words, hint="nothing was changed"), said)
    raise tell_all(errors[0], said)


def tell_all(error: QsupError, said: Sequence[Said]) -> QsupError:
    """The error, with what is said of every key."""
    error.details["keys"] = {each.key: each.values() for each in said}
    return error


def result_of(
    said: Sequence[Said],
    *,
    changed: bool,
    dry_run: bool,
    persisted: bool,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The result of a change of keys.

    Args:
        told: what else is known of a key, by key.
    """
    keys = {each.key: each.values() for each in said}
    for key, more in (told or {}).items():
        keys[key] = {**keys.get(key, {"applied": LIVE}), **more}
    done = not dry_run
    return {"changed": changed and done, "dry_run": dry_run, "persisted": persisted and done, "keys": keys}

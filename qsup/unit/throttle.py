"""The limits of a disk: which go together, and what QEMU calls them.

Decides: which limits contradict each other (util/throttle.c in QEMU's source), and their names in QAPI.
Must not: set any (`qsup.instance.live.throttle`).
"""

from __future__ import annotations

from collections.abc import Iterator

from qsup.unit.keys import keys_of
from qsup.unit.quantity import format_duration
from qsup.unit.sections.disks import THROTTLE_MAX, ThrottleSection

_KINDS = ("iops", "bps")
#: Direction in a unit -> in QAPI.
_DIRECTIONS = {"": "", "-read": "_rd", "-write": "_wr"}
#: QAPI's names of all limits, by those of a unit.
NAMES = {
    f"{kind}{direction}{suffix}": f"{kind}{qemu}{suffix.replace('-', '_')}"
    for kind in _KINDS
    for direction, qemu in _DIRECTIONS.items()
    for suffix in ("", "-max", "-max-length")
}


def _value(section: ThrottleSection, name: str) -> float:
    value: float = getattr(section, name.replace("-", "_"))
    return value


def said(section: ThrottleSection) -> dict[str, int]:
    """The limits that there are, by the unit's names; lengths in seconds, of bursts alone."""
    return {
        name: int(_value(section, name))
        for name in NAMES
        if _value(section, name) and (not name.endswith("-length") or _value(section, name.removesuffix("-length")))
    }


def arguments(section: ThrottleSection) -> dict[str, int]:
    """The same as QAPI's ``BlockIOThrottle`` has it, in which every average must be there."""
    averages = {f"{kind}{direction}": 0 for kind in _KINDS for direction in _DIRECTIONS.values()}
    return averages | {NAMES[name]: value for name, value in said(section).items()}


def contradictions(section: ThrottleSection) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What cannot be: why, and the keys that it rests on."""
    assert set(NAMES) == set(keys_of(ThrottleSection)), "a limit that nobody checks"
    for kind in _KINDS:
        for suffix in ("", "-max"):
            total, parts = f"{kind}{suffix}", [f"{kind}{way}{suffix}" for way in ("-read", "-write")]
            both = [part for part in parts if _value(section, part)]
            if _value(section, total) and both:
                yield f"{total} is for reads and writes together, so it cannot be beside {both[0]}", (both[0], total)
        for direction in _DIRECTIONS:
            yield from _burst(section, f"{kind}{direction}")


def _burst(section: ThrottleSection, average: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    most, length = f"{average}-max", f"{average}-max-length"
    rate, peak, seconds = (_value(section, name) for name in (average, most, length))
    if peak and not rate:
        yield f"{most} needs {average}", (most,)
    elif peak and peak < rate:
        yield f"{most} is less than {average}", (most, average)
    if seconds != 1 and not peak:
        yield f"{length} needs {most}", (length,)
    elif seconds != int(seconds):
        yield f"{length} ({format_duration(seconds)}) is not a whole number of seconds", (length,)
    elif peak * seconds > THROTTLE_MAX:
        yield f"a burst of {format_duration(seconds)} at that rate is more than QEMU can count", (length, most)

"""Sizes, times, CPU sets, numbers of CPUs and lists of words: their text in a unit file and their value.

Decides: which spellings are accepted, and the one spelling that is written back.
Must not: know any key, or bound a value beyond what its text can mean (`qsup.unit.kinds` does).

Every ``parse_x`` raises `ValueError` with a sentence for the user, and ``parse_x(format_x(v)) == v`` for each value
that ``parse_x`` can return.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIZE_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE_PATTERN = r"[0-9]{1,20}(\.[0-9]{1,20})?([KMGT](iB)?|B)"
_SIZE = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?(?:([KMGT])(?:iB)?|B)")
_DECIMAL_SIZE = re.compile(r"([0-9.]+)([KMGT])B", re.IGNORECASE)

# systemd.time(7), without months and years: their length is a matter of opinion
_MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_SPELLINGS = {
    "us": ("usec", "µs", "μs"),
    "ms": ("msec",),
    "s": ("sec", "second", "seconds"),
    "min": ("m", "minute", "minutes"),
    "h": ("hr", "hour", "hours"),
    "d": ("day", "days"),
    "w": ("week", "weeks"),
}
# below 2**53, so that a float of seconds holds every microsecond
_MAX_MICROSECONDS = 10**15
_UNIT_OF = {spelling: unit for unit, others in _SPELLINGS.items() for spelling in (unit, *others)}
_STEP = r"[0-9]{1,12}(\.[0-9]{1,12})?[ \t]*(" + "|".join(sorted(_UNIT_OF, key=len, reverse=True)) + ")"
_DURATION = re.compile(rf"{_STEP}([ \t]*{_STEP})*")
_DURATION_STEP = re.compile(r"([0-9]+)(?:\.([0-9]+))?[ \t]*([^0-9.\s]+)")

#: The kernel's own bound for x86-64 (CONFIG_NR_CPUS).
MAX_CPU = 8191
#: What a number of CPUs is counted in: thousandths of one.
CPU_SHARE = 1000
CPU_QUOTA_PATTERN = r"[0-9]{1,6}(\.[0-9]{1,3})?%?"
_CPU_QUOTA = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?(%?)")
CPU_SET_PATTERN = r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*"
_CPU_SET = re.compile(CPU_SET_PATTERN)


def shown(value: object) -> str:
    """A value as a message quotes it: short, on one line."""
    if isinstance(value, int) and abs(value) >= 10**20:
        # str() of an int refuses beyond 4300 digits
        return "a number of more than 20 digits"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    return str(value)


def _scaled(whole: str, fraction: str | None, factor: int) -> int | None:
    """``whole.fraction * factor`` where that is a whole number, else ``None``."""
    digits = fraction or ""
    amount, rest = divmod(int(whole + digits) * factor, 10 ** len(digits))
    return None if rest else amount


def parse_size(text: str) -> int:
    """Bytes written as ``"512M"``, ``"1.5G"``, ``"2GiB"`` or ``"1048576B"``; K, M, G and T are powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None:
        if decimal := _DECIMAL_SIZE.fullmatch(text):
            raise ValueError(f'{shown(text)} is ambiguous: write "{decimal[1]}{decimal[2].upper()}" for powers of 1024')
        hint = ', such as "512M" or "1.5G"'
        if text.isascii() and text.isdecimal() and len(text) < 20:
            hint = f': write "{text}M", or "{text}B" for bytes'
        raise ValueError(f"{shown(text)} is not a size{hint}")
    amount = _scaled(match[1], match[2], _SIZE_FACTORS[match[3] or ""])
    if amount is None:
        raise ValueError(f"{shown(text)} is not a whole number of bytes")
    return amount


def format_size(amount: int) -> str:
    """Bytes in the largest unit that needs no fraction: ``"2G"``, ``"1536M"``, ``"1000B"``."""
    for suffix in ("T", "G", "M", "K"):
        if amount and amount % _SIZE_FACTORS[suffix] == 0:
            return f"{amount // _SIZE_FACTORS[suffix]}{suffix}"
    return f"{amount}B"


def parse_duration(text: str) -> float:
    """Seconds written as ``"90s"``, ``"1min 30s"``, ``"500ms"`` or ``"2h"`` (systemd.time(7)), to the microsecond."""
    stripped = text.strip(" \t")
    if not _DURATION.fullmatch(stripped):
        hint = ', such as "90s", "1min 30s" or "500ms"'
        if stripped.isascii() and stripped.isdecimal() and len(stripped) < 12:
            hint = f': write "{stripped}s" for seconds'
        raise ValueError(f"{shown(text)} is not a time{hint}")
    total = 0
    for step in _DURATION_STEP.finditer(stripped):
        microseconds = _scaled(step[1], step[2], _MICROSECONDS[_UNIT_OF[step[3]]])
        if microseconds is None:
            raise ValueError(f"{shown(text)} is finer than a microsecond")
        total += microseconds
    if total > _MAX_MICROSECONDS:
        raise ValueError(f"{shown(text)} is longer than any time here")
    return total / 1_000_000


def format_duration(seconds: float) -> str:
    """Seconds in systemd's words, such as ``"1min 30s"``; zero is ``"0s"``."""
    rest = round(seconds * 1_000_000)
    words = []
    for unit in ("d", "h", "min", "s", "ms", "us"):
        count, rest = divmod(rest, _MICROSECONDS[unit])
        if count:
            words.append(f"{count}{unit}")
    return " ".join(words) or "0s"


def parse_cpu_set(text: str, *, of: str = "CPU") -> tuple[int, ...]:
    """CPU numbers written as ``"0-3,8"`` (cpuset(7), List Format), ascending, each once; ``of``: what they number."""
    if not is_cpu_set(text):
        raise ValueError(f'{shown(text)} is not a {of} set, such as "0-3,8", of numbers up to {MAX_CPU}')
    numbers: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"{shown(text)}: the range {span} runs backwards")
        if high > MAX_CPU:
            raise ValueError(f"{shown(text)}: the highest {of} number is {MAX_CPU}")
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def is_cpu_set(text: str) -> bool:
    """Whether it is written as one, whatever the numbers."""
    return _CPU_SET.fullmatch(text) is not None


def format_cpu_set(numbers: Iterable[int]) -> str:
    """CPU numbers as ``"0-3,8"``."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def parse_cpu_quota(text: str) -> int:
    """Thousandths of a CPU, written as ``"50%"`` of one, or as ``"2"`` or ``"1.5"`` CPUs."""
    match = _CPU_QUOTA.fullmatch(text)
    if match is None:
        raise ValueError(f'{shown(text)} is not a number of CPUs, such as "50%", "2" or "1.5"')
    amount = _scaled(match[1], match[2], CPU_SHARE // 100 if match[3] else CPU_SHARE)
    if amount is None:
        raise ValueError(f"{shown(text)} is finer than a thousandth of a CPU")
    return amount


def format_cpu_quota(amount: int) -> str:
    """Thousandths of a CPU as ``"2"`` where these are whole CPUs, else as ``"150%"`` or ``"12.5%"``."""
    if amount and amount % CPU_SHARE == 0:
        return str(amount // CPU_SHARE)
    percent, rest = divmod(amount, 10)
    return f"{percent}.{rest}%" if rest else f"{percent}%"


def alternatives(words: Iterable[str], conjunction: str = "or") -> str:
    """The words as English lists them: ``a``, ``a or b``, ``a, b or c``."""
    *most, last = words
    return f"{', '.join(most)} {conjunction} {last}" if most else last


def closest(text: str, words: Iterable[str]) -> str:
    """The word that ``text`` was probably meant to be, or ``""``."""
    if len(text) > 64:
        return ""
    # difflib is needed for a message only, and costs as much to import as the rest of this package
    import difflib

    found = difflib.get_close_matches(text.lower().replace("_", "-"), list(words), n=1)
    return found[0] if found else ""


def did_you_mean(text: str, words: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where one of the words is close, else ``""``."""
    word = closest(text, words)
    return f"; did you mean '{word}'?" if word else ""

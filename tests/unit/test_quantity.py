"""Sizes, times, CPU sets and lists of words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.unit import quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0B", 0),
        ("1048576B", 1 << 20),
        ("1K", 1024),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("1.5G", 1536 << 20),
        ("0.5T", 512 << 30),
    ],
)
def test_sizes(text: str, amount: int) -> None:
    """A size is a number with a unit of powers of 1024."""
    assert quantity.parse_size(text) == amount


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("512", 'write "512M", or "512B" for bytes'),
        ("2GB", 'is ambiguous: write "2G"'),
        ("1.5kb", 'is ambiguous: write "1.5K"'),
        ("0.1K", "not a whole number of bytes"),
        ("", 'is not a size, such as "512M"'),
        ("-1G", "is not a size"),
        ("1e3M", "is not a size"),
        ("٣M", "is not a size"),
        ("9" * 5000 + "M", "is not a size"),
    ],
)
def test_wrong_sizes(text: str, why: str) -> None:
    """What is no size is refused with what to write instead, in a short message."""
    with pytest.raises(ValueError, match=why) as caught:
        quantity.parse_size(text)
    assert len(str(caught.value)) < 150


@given(st.integers(0, 1 << 62))
def test_sizes_round_trip(amount: int) -> None:
    """Every number of bytes has a spelling that is read as the same number."""
    assert quantity.parse_size(quantity.format_size(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0B"), (1000, "1000B"), (1024, "1K"), (1536 << 20, "1536M"), (2 << 30, "2G")]
)
def test_format_size(amount: int, text: str) -> None:
    """A size is written in the largest unit that needs no fraction."""
    assert quantity.format_size(amount) == text


@pytest.mark.parametrize(
    ("text", "amount", "written"),
    [
        ("50%", 500, "50%"),
        ("2", 2000, "2"),
        ("1.5", 1500, "150%"),
        ("200%", 2000, "2"),
        ("12.5%", 125, "12.5%"),
        ("0.001", 1, "0.1%"),
        ("0", 0, "0%"),
    ],
)
def test_numbers_of_cpus(text: str, amount: int, written: str) -> None:
    """CPUs or percents of one, in thousandths; whole CPUs are written as such."""
    assert quantity.parse_cpu_quota(text) == amount
    assert quantity.format_cpu_quota(amount) == written
    assert quantity.parse_cpu_quota(written) == amount


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", 'such as "50%"'),
        ("50 %", "is not a number"),
        ("-1", "is not a number"),
        ("0.01%", "finer than a thousandth"),
    ],
)
def test_wrong_numbers_of_cpus(text: str, why: str) -> None:
    """What is none is refused with what to write instead."""
    with pytest.raises(ValueError, match=why):
        quantity.parse_cpu_quota(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("90s", 90.0),
        ("1min 30s", 90.0),
        ("1min30s", 90.0),
        ("500ms", 0.5),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("1.5h", 5400.0),
        (" 2 hours ", 7200.0),
        ("1w 1d", 691200.0),
        ("3m", 180.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A time is one or more numbers, each with one of systemd's units."""
    assert quantity.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("90", 'write "90s" for seconds'),
        ("", "is not a time"),
        ("1.5", "is not a time"),
        ("1s2", "is not a time"),
        ("1 month", "is not a time"),
        ("0.1us", "finer than a microsecond"),
        ("-1s", "is not a time"),
        ("999999999999w", "longer than any time here"),
    ],
)
def test_wrong_durations(text: str, why: str) -> None:
    """What is no time is refused with what to write instead."""
    with pytest.raises(ValueError, match=why):
        quantity.parse_duration(text)


@given(st.integers(0, 10**15))
def test_durations_round_trip(microseconds: int) -> None:
    """Every time that can be read has a spelling that is read as the same time."""
    seconds = microseconds / 10**6
    assert quantity.parse_duration(quantity.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (90.0, "1min 30s"), (0.25, "250ms"), (90061.000001, "1d 1h 1min 1s 1us")]
)
def test_format_duration(seconds: float, text: str) -> None:
    """A time is written in systemd's words."""
    assert quantity.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("8,0-1,1", (0, 1, 8)), ("8191", (8191,))]
)
def test_cpu_sets(text: str, numbers: tuple[int, ...]) -> None:
    """A CPU set is numbers and ranges; it is kept sorted, each CPU once."""
    assert quantity.parse_cpu_set(text) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "not a CPU set"), ("3-1", "runs backwards"), ("0-9999", "highest CPU"), ("0,", "not a CPU set")],
)
def test_wrong_cpu_sets(text: str, why: str) -> None:
    """What is no CPU set is refused."""
    with pytest.raises(ValueError, match=why):
        quantity.parse_cpu_set(text)


@given(st.sets(st.integers(0, quantity.MAX_CPU), min_size=1, max_size=50))
def test_cpu_sets_round_trip(numbers: set[int]) -> None:
    """Every set of CPUs has a spelling that is read as the same set."""
    assert quantity.parse_cpu_set(quantity.format_cpu_set(numbers)) == tuple(sorted(numbers))


def test_alternatives() -> None:
    """Words are listed as English lists them."""
    assert [quantity.alternatives(words) for words in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vcpu", "; did you mean 'vcpus'?"),
        ("max_vcpus", "; did you mean 'max-vcpus'?"),
        ("MODEL", "; did you mean 'model'?"),
        ("zebra", ""),
        ("v" * 10**6, ""),
    ],
)
def test_did_you_mean(text: str, expected: str) -> None:
    """A near word is suggested, whatever its case and its dashes; for a far or endless one nothing is."""
    assert quantity.did_you_mean(text, ["vcpus", "max-vcpus", "model"]) == expected


@given(st.one_of(st.text(), st.integers(), st.binary().map(str)))
def test_shown_values_are_short(value: object) -> None:
    """A value is quoted on one line and cut."""
    text = quantity.shown(value)
    assert text.isprintable()
    assert len(text) < 700  # 57 characters, each escaped with up to ten


def test_shown_numbers_beyond_what_python_prints() -> None:
    """A number of more digits than Python converts is named, not shown."""
    assert quantity.shown(16**5000) == "a number of more than 20 digits"

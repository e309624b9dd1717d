"""Tests of `qsup.host.imageheader`: what a qcow2 header may say."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.host.imageheader import MAGIC, HeaderError, header_area, parse_qcow2


def header(
    *,
    version: int = 3,
    cluster_bits: int = 16,
    size: int = 1 << 30,
    encryption: int = 0,
    incompatible: int = 0,
    backing: bytes = b"",
    backing_format: bytes = b"",
    data_file: bytes = b"",
) -> bytes:
    """A qcow2 header as docs/interop/qcow2.txt draws it, in a first cluster of its own."""
    extensions = b"".join(
        struct.pack(">II", kind, len(data)) + data.ljust((len(data) + 7) // 8 * 8, b"\0")
        for kind, data in ((0xE2792ACA, backing_format), (0x44415441, data_file), (0x6803F857, b"names" * 10))
        if data
    )
    length = 104 if version == 3 else 72
    end = length + len(extensions) + 8
    start = struct.pack(
        ">4sIQIIQI", MAGIC, version, end if backing else 0, len(backing), cluster_bits, size, encryption
    )
    start = start.ljust(72, b"\0")
    if version == 3:
        start += struct.pack(">QQQII", incompatible, 0, 0, 4, length)
    return (start + extensions + bytes(8) + backing).ljust(1 << cluster_bits, b"\0")


@pytest.mark.parametrize("version", [2, 3])
def test_plain_image(version: int) -> None:
    """Both versions give the virtual size, and no other file."""
    found = parse_qcow2(header(version=version))
    assert (found.virtual_size, found.backing, found.backing_format, found.external_data) == (1 << 30, "", "", False)


def test_backing_file() -> None:
    """The backing file's name and format are as they stand in the header, whatever bytes they are."""
    found = parse_qcow2(header(backing=b"json:{}\xff", backing_format=b"raw"))
    assert (found.backing, found.backing_format) == ("json:{}\udcff", "raw")


@pytest.mark.parametrize("area", [header(incompatible=1 << 2), header(data_file=b"/etc/shadow")])
def test_external_data_file(area: bytes) -> None:
    """An external data file is seen by its feature bit and by its name, either alone."""
    assert parse_qcow2(area).external_data


def test_dirty_image_is_fine() -> None:
    """An image that was not closed properly is for QEMU to repair; extended L2 entries are known."""
    assert parse_qcow2(header(incompatible=1 | 1 << 3 | 1 << 4)).virtual_size == 1 << 30


@pytest.mark.parametrize(
    ("area", "rule"),
    [
        (b"", "qcow2-magic"),
        (b"QFI\xfb", "qcow2-magic"),
        (bytes(1 << 16), "qcow2-magic"),
        (header(version=4), "qcow2-version"),
        (header(cluster_bits=8), "qcow2-corrupt"),
        (header(cluster_bits=22)[:4096], "qcow2-corrupt"),
        (header()[:80], "qcow2-corrupt"),
        (header(incompatible=1 << 1), "qcow2-corrupt"),
        (header(incompatible=1 << 5), "qcow2-features"),
        (header(incompatible=1 << 63), "qcow2-features"),
        (header(encryption=2), "qcow2-encrypted"),
        (header(cluster_bits=9, backing=b"x" * 1000), "qcow2-corrupt"),
        (header(backing=b"x" * 1024), "qcow2-corrupt"),
        (header(backing=b"base.img")[:120], "qcow2-corrupt"),
        (header()[:104] + struct.pack(">II", 0xE2792ACA, 1 << 31), "qcow2-corrupt"),
    ],
)
def test_refusals_name_their_rule(area: bytes, rule: str) -> None:
    """A header that is corrupt, of another kind, or asks for what is not known is refused by name."""
    with pytest.raises(HeaderError) as caught:
        parse_qcow2(area)
    assert caught.value.rule == rule


@given(st.integers(9, 21))
def test_area_is_the_first_cluster(bits: int) -> None:
    """The header lies within the first cluster, whose size it gives."""
    assert header_area(header(cluster_bits=bits)[:112]) == 1 << bits


@given(st.binary(max_size=300), st.integers(0, 200))
def test_random_headers_are_refused_or_parsed(noise: bytes, position: int) -> None:
    """No header whatever gives anything but a value or a `HeaderError`."""
    area = bytearray(header(cluster_bits=9, backing=b"base.img", backing_format=b"qcow2"))
    area[4 + position : 4 + position + len(noise)] = noise
    try:
        parse_qcow2(bytes(area))
    except HeaderError as error:
        assert error.rule

"""Tests of `qsup.host.claims`: one writer, or readers; and QEMU's own locks."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsup.errors import ImageInUse
from qsup.host.claims import Claim, Claims, locked_by_qemu
from qsup.host.image import OpenImage, open_image
from tests.host.children import child

claims_on_one_image = st.builds(
    Claim, path=st.just("x"), st_dev=st.just(1), st_ino=st.just(2), writable=st.booleans(), shareable=st.booleans()
)


@given(claims_on_one_image, claims_on_one_image)
def test_conflicts_are_mutual(first: Claim, second: Claim) -> None:
    """Two claims conflict when one writes and not both share, whichever comes first."""
    conflict = (first.writable or second.writable) and not (first.shareable and second.shareable)
    assert first.conflicts(second) is second.conflicts(first) is conflict


@pytest.fixture
def image(pool: Path) -> Iterator[OpenImage]:
    """An open image."""
    with open(pool / "disk.raw", "wb") as file:
        file.truncate(4096)
    opened = open_image("disk.raw", pools=[pool], format="raw", read_only=False)
    yield opened
    opened.close()


def test_one_writer_per_image(image: OpenImage) -> None:
    """A second VM is refused by name, and may have the image once the first gives it up."""
    claims = Claims()
    claim = claims.acquire(image, holder="web", writable=True)
    assert claim.key == (image.st_dev, image.st_ino)
    for writable in (True, False):
        with pytest.raises(ImageInUse, match=r"disk image disk\.raw is written by VM web") as caught:
            claims.acquire(image, holder="mail", writable=writable)
        assert caught.value.details["holder"] == "web"
    claims.release("web")
    claims.release("web")
    claims.acquire(image, holder="mail", writable=True)
    assert claims.holders(image) == ("mail",)


def test_many_readers_and_no_writer(image: OpenImage) -> None:
    """Any number may read; nobody may write then."""
    claims = Claims()
    for holder in ("a", "b", "c"):
        claims.acquire(image, holder=holder, writable=False)
    with pytest.raises(ImageInUse, match="is read by VM a"):
        claims.acquire(image, holder="d", writable=True)


def test_two_disks_of_one_vm(image: OpenImage) -> None:
    """One image cannot be two writable disks of one VM either."""
    claims = Claims()
    claims.acquire(image, holder="web", writable=True)
    with pytest.raises(ImageInUse, match="is written by another disk of this VM"):
        claims.acquire(image, holder="web", writable=True)


def test_shareable_images_have_many_writers(image: OpenImage) -> None:
    """Where all say so, several may write; who does not say so is refused."""
    claims = Claims()
    claims.acquire(image, holder="a", writable=True, shareable=True)
    claims.acquire(image, holder="b", writable=True, shareable=True)
    with pytest.raises(ImageInUse, match="is written by VM a"):
        claims.acquire(image, holder="c", writable=False)


def test_adopted_vms_keep_their_claims(image: OpenImage) -> None:
    """What an adopted VM has is taken note of and refused to others."""
    claims = Claims()
    claim = Claim(path="disk.raw", st_dev=image.st_dev, st_ino=image.st_ino, writable=True, shareable=False)
    claims.restore(claim, holder="web")
    with pytest.raises(ImageInUse, match="by VM web"):
        claims.acquire(image, holder="mail", writable=False)


LOCKER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for byte in map(int, sys.argv[2:]):
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("bytes_locked", "refused"),
    [
        # (writable, shareable) that QEMU would refuse beside a process that uses 100+N and forbids 200+N
        ((100, 101, 201, 203), {(True, False), (True, True), (False, False)}),
        ((100, 101), {(True, False), (False, False)}),
        ((100, 201, 203), {(True, False), (True, True)}),
        ((100,), set()),
    ],
)
def test_locks_of_a_foreign_qemu(
    image: OpenImage, bytes_locked: tuple[int, ...], refused: set[tuple[bool, bool]]
) -> None:
    """An image that a process outside the daemon holds is refused where QEMU would refuse it, and it is named."""
    command = ["/usr/bin/env", "python3", "-c", LOCKER, str(image.location), *map(str, bytes_locked)]
    with child(*command) as locker:
        assert locker.stdout
        assert locker.stdout.readline() == b"locked\n"
        for writable in (True, False):
            for shareable in (True, False):
                claims = Claims()
                if (writable, shareable) not in refused:
                    claims.acquire(image, holder="web", writable=writable, shareable=shareable)
                    continue
                with pytest.raises(ImageInUse, match=rf"is in use by .*\(pid {locker.pid}\)"):
                    claims.acquire(image, holder="web", writable=writable, shareable=shareable)
    assert not locked_by_qemu(image.fd_ro, writable=True)


def test_looking_at_locks_takes_none(image: OpenImage) -> None:
    """After a look, another process can still lock everything."""
    locked_by_qemu(image.fd_ro, writable=True)
    other = os.open(image.location, os.O_RDWR)
    fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    os.close(other)

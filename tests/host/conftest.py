"""What the tests of `qsup.host` share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.launching import Printed


def _open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


@pytest.fixture(autouse=True)
def no_leaked_fds() -> Iterator[None]:
    """Every test closes what it opens."""
    before = _open_fds()
    yield
    after = _open_fds()
    leaked = {fd: target for fd, target in after.items() if fd not in before}
    assert not leaked


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """An empty image pool."""
    directory = tmp_path / "pool"
    directory.mkdir()
    return directory


@pytest.fixture
def printed() -> Iterator[Printed]:
    """Where a test's child prints."""
    output = Printed()
    yield output
    os.close(output.fd)

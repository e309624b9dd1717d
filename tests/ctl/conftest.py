"""What tests of qsupctl share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.api.calling import Daemon, daemon
from tests.api.fake import NOON
from tests.ctl.running import Ctl


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Daemon]:
    """The API with two running VMs, ``db`` and ``web``."""
    async with daemon(tmp_path, "db", "web") as running:
        yield running


@pytest.fixture
def ctl(served: Daemon, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """qsupctl, connected to `served`."""
    return Ctl(served.served.path, capsys)


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is five minutes and three seconds past `NOON`, in UTC."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: NOON + 303)
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()

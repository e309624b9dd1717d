"""What is said of placements on hosts in the shapes of real machines, word by word."""

from __future__ import annotations

import pytest

from tests.plan import placing
from tests.plan.hosts import HOSTS


@pytest.mark.parametrize("host", HOSTS)
def test_placements_are_explained(host: str) -> None:
    """All that is said is what was read and kept; `python -m tests.plan.regenerate` writes it anew."""
    assert placing.render(host) == (placing.KEPT / f"{host.replace(' ', '-')}.txt").read_text()


def test_every_text_has_its_host() -> None:
    """No text is kept of a host that there is no more."""
    assert {path.stem for path in placing.KEPT.iterdir()} == {host.replace(" ", "-") for host in HOSTS}

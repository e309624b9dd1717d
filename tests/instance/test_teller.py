"""What is told of a VM: how often, and of what all of it."""

from __future__ import annotations

from typing import Any

from qsup.instance.teller import Teller


def test_what_a_guest_does_again_and_again_is_told_once() -> None:
    """A second long, by kind; what the daemon itself has found is told each time: the last of it is what counts."""
    told: list[tuple[str, Any]] = []
    teller = Teller("web", lambda kind, _name, data: told.append((kind, data["detail"])))
    for detail in ("away", "back"):
        teller.happened("reset", {"detail": detail})
        teller.happened("pin-drift", {"detail": detail}, of_guest=False)
    assert told == [("reset", "away"), ("pin-drift", "away"), ("pin-drift", "back")]

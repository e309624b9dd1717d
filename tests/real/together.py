"""VMs that have to do with each other: their units, and what is seen of all of them.

Decides: how a test makes such VMs, and waits for what they do.
Must not: assert what follows from their relations.

A VM that is to be ready at a test's word has `ready` wait for a text that the test types: its guest echoes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.guests import Emulator
from tests.real.daemons import DEADLINE, Daemon, Events, rom_unit
from tests.waiting import poll_until

AT_A_WORD = 'ready = {serial = "go"}'
UP = 'ready = {serial = "ready"}'

Write = Callable[..., None]


def writer(daemon: Daemon, emulator: Emulator, rom_guest: Path) -> Write:
    """Writes units: a ``[unit]`` section, and further sections."""

    def write(name: str, unit: str = "", *, service: str = "", **sections: str) -> None:
        # until it has said so, a guest is deaf to the power button
        ready = service if "ready" in service else f"{service}\n{UP}"
        daemon.unit(name, rom_unit(emulator, rom_guest, unit=unit, service=ready, **sections))

    return write


def substates(daemon: Daemon) -> dict[str, str]:
    """Where each VM is."""
    return {view["name"]: view["substate"] for view in daemon.get("/v1/instances")["instances"]}


def newest(daemon: Daemon, name: str) -> dict[str, Any]:
    """The newest operation on a VM."""
    operations = daemon.get("/v1/operations")["operations"]
    found: dict[str, Any] = next(operation for operation in operations if operation["target"] == name)
    return found


def ended(daemon: Daemon, operation: dict[str, Any]) -> dict[str, Any]:
    """An operation once it has ended."""
    found: dict[str, Any] = daemon.get(f"/v1/operations/{operation['id']}/wait?timeout={DEADLINE:g}")
    assert found["state"] != "running", found
    return found


def waits_for(daemon: Daemon, operation: dict[str, Any], words: str) -> None:
    """Wait until an operation says that it waits for this."""

    def says() -> bool:
        return words in str(daemon.get(f"/v1/operations/{operation['id']}")["progress"])

    poll_until(says, f"the operation waits for {words}", seconds=DEADLINE)


def changes(events: Events, *wanted: tuple[str, str]) -> list[tuple[str, str]]:
    """VMs and their substates, as they come, until all that are wanted have come."""
    seen: list[tuple[str, str]] = []
    while not set(wanted) <= set(seen):
        event = events.next("instance-state")
        seen.append((event["instance"], event["data"]["substate"]))
    return seen

"""A daemon that dies before any step it is told to, and asking it for something meanwhile.

Decides: which steps are worth dying before, and what counts as having been told of an operation.
Must not: know the steps (`tests.real.dying` counts them), or judge what became of a VM; tests do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from qsup.errors import DaemonUnreachable
from tests.real.daemons import DEADLINE, Daemon, whole_lines
from tests.waiting import poll_until

#: Seconds for the next daemon to say how an operation ended.
SETTLED = 10.0
#: More steps than any operation has.
BEYOND = 10_000


@frozen(kw_only=True)
class Asked:
    """A request that begins one operation.

    Args:
        kind: the operation's.
        path: below ``/v1``.
    """

    kind: str
    path: str
    method: str = "POST"
    body: dict[str, Any] | None = None


@frozen(kw_only=True)
class Death:
    """What came of one.

    Args:
        at: the step that was not made.
        step: its number.
        found: the operation as the next daemon tells it, ``None`` if it was never accepted.
    """

    at: str
    step: int
    found: dict[str, Any] | None

    @property
    def outcome(self) -> tuple[str, str]:
        """The step, and the operation's state."""
        return self.at, self.found["state"] if self.found else "unknown"


class Mortal(Daemon):
    """A daemon that can be told before which of its next steps to die."""

    def die_at(self, step: int, *, stops: int = 0) -> None:
        """From now on count steps, and die before one of them; 0 for never, unless it dies even now.

        Args:
            stops: the id of a process that is stopped instead.
        """
        (self.root / "dies-at").write_text(f"{step} {stops}")
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        begun = f"begun {step}"
        poll_until(lambda: self.steps()[:1] == [begun] or not self.is_alive(), "it counts", seconds=DEADLINE)

    def steps(self) -> list[str]:
        """Those made, the last one begun only."""
        return (self.root / "steps").read_text().splitlines()

    def steps_of(self, asked: Asked) -> list[str]:
        """Those that a request takes, which is carried out."""
        self.die_at(BEYOND)
        self.ask(asked)
        return self.steps()[1:]

    def ask(self, asked: Asked) -> dict[str, Any] | None:
        """Ask for it, until it has ended and all of it is written down, or the daemon died: the last answer."""
        said = None
        try:
            with self.client() as client:
                body = b"" if asked.body is None else json.dumps(asked.body).encode()
                said = json.loads(client.exchange(asked.method, f"/v1/{asked.path}", body=body))
                said = client.get(f"/v1/operations/{said['id']}/wait?timeout={DEADLINE}")
        except DaemonUnreachable:
            poll_until(lambda: not self.is_alive(), "it is dead", seconds=DEADLINE)
        else:
            poll_until(lambda: self._has_ended(said) or not self.is_alive(), "its end is on disk", seconds=DEADLINE)
        return said

    def die_during(self, asked: Asked, step: int) -> Death | None:
        """Ask for it, die before a step and be followed by the next daemon; ``None`` where that step did not come."""
        known = {each["id"] for each in self.get("/v1/operations")["operations"]}
        self.die_at(step)
        said = self.ask(asked)
        if self.is_alive():
            self.die_at(0)
        if self.is_alive():
            return None
        at = self.steps()[-1]
        self.start()
        operations = self.get("/v1/operations")["operations"]
        found = next((each for each in operations if each["kind"] == asked.kind and each["id"] not in known), None)
        assert said is None or found is not None, f"{said} was told of, and is forgotten"
        if found is not None:
            found = self.get(f"/v1/operations/{found['id']}/wait?timeout={SETTLED}")
            assert found["state"] != "running", f"step {step} ({at})"
            if said is not None and said["state"] != "running":
                assert (found["state"], found["result"]) == (said["state"], said["result"]), "as it was told before"
        return Death(at=at, step=step, found=found)

    def _has_ended(self, operation: dict[str, Any]) -> bool:
        """Whether the end of an operation has been written down."""
        lines = whole_lines(self.root / "state" / "operations.jsonl").splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        return bool(next(each["state"] for each in reversed(records) if each["id"] == operation["id"]) != "running")


@contextmanager
def may_die(root_dir: Path) -> Iterator[Mortal]:
    """A daemon that has not been told to die yet, and is ended with all its VMs."""
    daemon = Mortal(root_dir, command=(sys.executable, "-m", "tests.real.dying"))
    daemon.start()
    yield daemon
    if not daemon.is_alive():
        daemon.start()  # whoever ends all its VMs has to live
    daemon.close()


def points(steps: list[str]) -> list[int]:
    """Which steps to die before, counted from 1: of a row of the same calls, such as removals, the first and the last.

    ``QSUP_ALL_STEPS`` asks for every one of them.
    """
    rows = [(before, at, after) for before, at, after in zip(["", *steps], steps, [*steps[1:], ""], strict=False)]
    every = bool(os.environ.get("QSUP_ALL_STEPS"))
    return [number for number, row in enumerate(rows, 1) if every or len(set(row)) > 1]

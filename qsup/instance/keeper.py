"""What is written down of a VM for the next daemon: where it stands while it lives, and how it ended.

Decides: when that is written, and what is said when it cannot be.
Must not: fail a VM for it: it runs, and stays findable by what was written before.
"""

from __future__ import annotations

import math
import time

import structlog
from attrs import evolve

from qsup.errors import QsupError
from qsup.instance import adopt, ended
from qsup.instance.life import Life
from qsup.instance.position import Position
from qsup.instance.record import Running
from qsup.instance.services import Services
from qsup.instance.state import State
from qsup.unit.load import LoadedUnit

#: Seconds between two writes for what a guest can cause without end.
_COUNT_EVERY = 1.0


class Keeper:
    """Keeps one VM's records up to date.

    Attributes:
        trouble: what could not be written, one sentence, or ``""``.
        unsaved_end: that is how the VM ended, and is to be tried again.
        uncounted: its guest has reset itself since the record was written.
    """

    def __init__(self, name: str, services: Services) -> None:
        self.trouble = ""
        self.unsaved_end = False
        self.uncounted = False
        self._counted = -math.inf
        self._name = name
        self._services = services
        self._saved: Running | None = None
        self._log = structlog.get_logger().bind(instance=name)

    def found(self, running: Running) -> None:
        """What an earlier daemon wrote of it."""
        self._saved = running

    def keep(self, life: Life | None, position: Position, resets: int) -> None:
        """Where a VM stands that lives, before something is done that must not be forgotten.

        Raises:
            QsupError: it could not be written.
        """
        if life is not None and position.state in adopt.RECORDED:
            running = self._standing(life, position, resets)
            if running != self._saved:
                adopt.save(life, running)
                self._saved = running

    def _standing(self, life: Life, position: Position, resets: int) -> Running:
        return adopt.standing(life, position, resets, self._services)

    def save(
        self, life: Life | None, position: Position, operation: str | None, resets: int, *, at_once: bool = False
    ) -> None:
        """Where a VM stands that lives, unless that is what was saved before.

        Args:
            resets: what its guest has counted; that alone is written once a second at most.
            at_once: nobody will be there to write it later.
        """
        self.uncounted = False
        if life is None or position.state not in adopt.RECORDED:
            return
        running, saved, now = self._standing(life, position, resets), self._saved, time.monotonic()
        if running != saved:
            counts_alone = saved is not None and running == evolve(saved, resets=resets)
            if counts_alone and now - self._counted < _COUNT_EVERY and not at_once:
                self.uncounted = True
                return
            try:
                adopt.save(life, running)
            except QsupError as error:
                self._note(f"could not update the run record: {error.message}", operation)
                return
            self._saved = running
            if counts_alone:
                self._counted = now
        self.trouble = self.trouble if self.unsaved_end else ""

    def save_end(self, ran: LoadedUnit, position: Position, operation: str | None) -> None:
        """How a VM ended that lives no more; without it a later daemon shows it as plainly inactive."""
        again, services = position.state is State.AUTO_RESTART, self._services
        self.unsaved_end = False
        try:
            complete = ended.keep(
                services.layout,
                ran,
                state=position.state,
                cause=position.cause,
                since=position.since,
                uptime=position.uptime,
                due=time.monotonic() + position.restart_delay if again else 0.0,
                history=position.history,
                chosen=services.placements.chosen(ran.name) if again else None,
                plan=services.capacity.basis(ran.name) if again else None,
            )
        except QsupError as error:
            self.unsaved_end = True
            # what is there is of an end before this one, by which it might be started against an operator's word
            ended.forget(self._services.layout, self._name)
            self._note(f"could not keep how it ended: {error.message}", operation)
            return
        self.trouble = ""
        if not complete:
            self.unsaved_end = True
            self._note("could not keep what was last said: No space left on device", operation)

    def _note(self, words: str, operation: str | None) -> None:
        if words != self.trouble:  # a heartbeat tries again every few seconds
            self._log.error("a record could not be written", why=words, operation=operation)
        self.trouble = words

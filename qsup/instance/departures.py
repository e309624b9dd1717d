"""Detaches that QEMU has taken and the guest has to fulfil.

Decides: which of them is over, and how it ended.
Must not: ask QEMU anything, or hold the VM: whoever waits here keeps nobody from changing something else.

What ends one is that QEMU has no such device any more, however that came about: the guest let it go, was reset, or
somebody removed it by hand. An answer to ``device_del`` ends nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from qsup.errors import ChangeError, QsupError
from qsup.instance.going import kept
from qsup.instance.hardware import Hardware
from qsup.instance.messages import Waits


class EndOperation(Protocol):
    """Ends an operation."""

    def __call__(self, operation: str, result: Mapping[str, Any] | None = None, error: QsupError | None = None) -> None:
        """With a result, or why it failed."""


class Clock(Protocol):
    """What of a detach hangs on time; `qsup.instance.body.Body`."""

    def await_release(self, waits: Waits) -> None:
        """It begins to wait."""

    def end_release(self, operation: str) -> None:
        """It waits no more."""


class Departures:
    """The detaches of one VM that wait for its guest.

    Args:
        end: ends an operation.
        forget: has the VM's unit have an entry no more.
    """

    def __init__(self, name: str, end: EndOperation, forget: Callable[[str], Awaitable[None]]) -> None:
        self._name = name
        self._end = end
        self._forget = forget
        self._waiting: dict[str, Waits] = {}

    def add(self, waits: Waits) -> None:
        """One more; of an earlier daemon's, before it is known what is left of the VM."""
        self._waiting[waits.operation] = waits

    def go_on(self, clock: Clock) -> None:
        """The VM is there: what an earlier daemon left waits on."""
        for waits in self._waiting.values():
            clock.await_release(waits)

    def check(self, entry: str) -> None:
        """See that an entry is not on its way out; `ChangeError`."""
        for waits in self._waiting.values():
            if waits.entry == entry:
                words = f"{entry} is being detached already (operation {waits.operation})"
                raise ChangeError(words, instance=self._name, hint="a reset of the guest has it go")

    def refused(self, hardware: Hardware, device: str, clock: Clock) -> None:
        """The guest does not let a device go: it stays, and whoever wanted it gone hears so."""
        held = {p.entry for p in hardware.in_state("leaving") if any(device == each.id for each in p.devices)}
        for entry in held:
            hardware.mark(entry, "there")
        hardware.kept |= held
        error = kept(", ".join(held))
        error.instance = self._name
        for waits in self._take(lambda waits: waits.entry in held, clock):
            self._end(waits.operation, None, error)

    async def settled(self, hardware: Hardware, clock: Clock) -> None:
        """What QEMU has is known: those whose devices are gone are over."""
        for waits in self._take(lambda waits: hardware.part(waits.entry) is None, clock):
            await self._gone(waits)

    async def life_over(self, clock: Clock) -> None:
        """The VM has ended: what its unit is not to have any more does not come back with the next start."""
        for waits in self._take(lambda _: True, clock):
            if waits.persist:
                await self._gone(waits)
            else:
                words = "the VM ended before its guest had let the device go"
                self._end(waits.operation, None, ChangeError(words, instance=self._name))

    def _take(self, which: Callable[[Waits], bool], clock: Clock) -> list[Waits]:
        taken = [waits for waits in self._waiting.values() if which(waits)]
        for waits in taken:
            del self._waiting[waits.operation]
            clock.end_release(waits.operation)
        return taken

    async def _gone(self, waits: Waits) -> None:
        try:
            if waits.persist:
                await self._forget(waits.entry)
        except QsupError as error:
            self._end(waits.operation, None, error)
        else:
            self._end(waits.operation, {"changed": True})

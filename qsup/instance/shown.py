"""A VM as others see it: they read, and wait for it to change; they never wait for its driver.

Decides: what is shown of a VM, what it tells of itself among that, and when whoever watches it hears of a change.
Must not: change where the VM stands; its driver does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog
import trio
from attrs import evolve, field, frozen

from qsup.host.output import BoundedLog
from qsup.instance.body import Body
from qsup.instance.console import ConsoleHub
from qsup.instance.hold import Hold
from qsup.instance.life import Life
from qsup.instance.messages import DEVICE_PULLED, HELPER_ENDED, PIN_DRIFT, RESET, Noted, Told, TrayMoved
from qsup.instance.position import Position
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import State
from qsup.instance.teller import Teller
from qsup.instance.view import InstanceView
from qsup.instance.viewing import Moving, make_view
from qsup.unit.load import LoadedUnit


@frozen(kw_only=True)
class Observed:
    """What the VM last told of itself, besides its state."""

    monitor_connected: bool = True
    agent_connected: bool = False
    memory_actual: int | None = None
    memory_size: int | None = None
    threads: tuple[int, ...] = ()
    trays: Mapping[str, str] = field(factory=dict)
    resets: int = 0
    warnings: tuple[str, ...] = ()


class Shown:
    """One VM, over all its lives, as others see it.

    Args:
        loaded: its unit as the files say it; `set_unit` replaces it after a reload.

    Attributes:
        body: what lives in time, ``None`` until the driver runs.
        observed: what it last told of itself.
        ran: its unit as it ran last, or the files' before it ever did.
        uuid: from its identity, ``""`` before its first start.
        command_line: QEMU's argv in the present or the last life, empty before the first.
    """

    def __init__(self, loaded: LoadedUnit, services: Services) -> None:
        self.name = loaded.name
        self.loaded = self.ran = loaded
        self.body: Body | None = None
        self.observed = Observed()
        self.uuid = ""
        self.command_line: tuple[str, ...] = ()
        self.console = ConsoleHub(loaded.name, self.touch, BoundedLog(services.layout.console_log(loaded.name)))
        self._position = Position()
        self._teller = Teller(loaded.name, services.publish)
        self._hold = Hold(loaded.name, services.operations, self._teller, self.touch)
        self._adopted = trio.Event()
        self._stray = self._waits_for = ""
        self._view: InstanceView | None = None
        self._touched: trio.Event | None = None
        self._log = structlog.get_logger().bind(instance=loaded.name)

    @property
    def state(self) -> State:
        """The state now."""
        return self._position.state

    @property
    def life(self) -> Life | None:
        """The VM's present life, ``None`` while it has none."""
        return self.body.life if self.body else None

    @property
    def holder(self) -> Holder | None:
        """The operation that holds it."""
        return self._hold.holder

    @property
    def restart_delay(self) -> float:
        """Seconds from the end of the VM to its automatic restart, while it waits for that."""
        return self._position.restart_delay if self.state is State.AUTO_RESTART else 0.0

    @property
    def view(self) -> InstanceView:
        """All that is known now; the same object until something changes."""
        if self._view is None:
            position = self._position
            moving = Moving(
                state=position.state,
                cause=position.cause,
                since=position.since,
                restarts=position.history.count,
                operation=self._hold.operation,
                waits_for=self._waits_for,
                agent_connected=self.observed.agent_connected,
                memory_actual=self.observed.memory_actual,
                memory_size=self.observed.memory_size,
                threads=self.observed.threads,
                trays=self.observed.trays,
                resets=self.observed.resets,
                warnings=(*self.observed.warnings, *self.console.troubles, *filter(None, [self._stray])),
                console_watchers=self.console.watchers,
                console_has_writer=self.console.has_writer,
                uuid=self.uuid,
            )
            self._view = make_view(self.loaded, self.life, moving)
        return self._view

    def set_stray(self, pid: int | None) -> None:
        """A process is this VM, and there is no record of it; ``None``: there is none."""
        words = f"process {pid} is this VM, and there is no record of it: it is not watched" if pid else ""
        if words != self._stray:
            self._stray = words
            if words:
                self._log.error("a QEMU without a record", pid=pid)
            self.touch()

    def set_unit(self, loaded: LoadedUnit) -> None:
        """The unit's files were read anew; what the daemon alone acts on counts at once, the rest at the next start."""
        if (loaded.etag, loaded.files) != (self.loaded.etag, self.loaded.files):
            self.loaded = loaded
            self.touch()

    def lose_unit(self) -> None:
        """Its files are gone: what it runs with, or ran with last, counts, and not what they said before they went."""
        self.set_unit(evolve(self.ran if self.life is None else as_it_runs(self.life), files=()))

    def wait_for(self, whom: str) -> None:
        """Its operation waits for this, in words, which the view shows; ``""``: for nothing any more."""
        if whom != self._waits_for:
            self._waits_for = whom
            self.touch()

    # what it tells of itself

    def _on_noted(self, message: Noted) -> None:
        observed = evolve(self.observed, **message.changes)
        if observed != self.observed:
            self._teller.noted(message.changes, set(observed.warnings) - set(self.observed.warnings))
            self.observed = observed
            self.touch()

    def _on_tray(self, message: TrayMoved) -> None:
        disks = self.life.summary.disks if self.life is not None else ()
        if name := next((disk.id for disk in disks if disk.device == message.drive), ""):
            trays = {**self.observed.trays, name: "open" if message.open else "closed"}
            self._on_noted(Noted(life=message.life, changes={"trays": trays}))

    def _on_told(self, message: Told) -> None:
        data = dict(message.data)
        if message.type == RESET:
            self.observed = evolve(self.observed, resets=self.observed.resets + bool(data["guest"]))
            self.touch()
            data["resets"] = self.observed.resets
        elif message.type in (HELPER_ENDED, DEVICE_PULLED, PIN_DRIFT):
            self.touch()  # the view warns of it
        # where threads belong the daemon looks itself, and what it found last is what counts
        self._teller.happened(message.type, data, of_guest=message.type != PIN_DRIFT)

    # waiting

    def touch(self) -> None:
        """Something that the view shows has changed."""
        self._view = None
        if self._touched is not None:
            self._touched.set()
            self._touched = None

    def next_touch(self) -> trio.Event:
        """Set when the state, the holder or something else in the view changes for the next time."""
        if self._touched is None:
            self._touched = trio.Event()
        return self._touched

    @property
    def is_adopted(self) -> bool:
        """Whether it is known what an earlier daemon left of this VM."""
        return self._adopted.is_set()

    async def wait_adopted(self) -> None:
        """Wait until what an earlier daemon left of this VM has been taken over, as far as the kernel knows of it."""
        await self._adopted.wait()

    async def wait_state(self, satisfied: Callable[[State], bool]) -> None:
        """Wait until the state satisfies a predicate; the caller sets the deadline."""
        await self._position.wait(satisfied)


def as_it_runs(life: Life) -> LoadedUnit:
    """The unit of a life as if files said so."""
    record, files = life.record, life.running.files
    return LoadedUnit(name=record.name, unit=life.unit, files=files, etag=record.unit_digest, text="")

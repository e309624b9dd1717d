"""What goes on at a VM while nothing holds it: devices on their way out, what its guest works on, changes of its files.

Decides: what becomes of these as the VM is found, tells of its devices, and ends.
Must not: move a state, or ask QEMU anything; `Departures` and `Works` know each their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsup.errors import ChangeError, DeniedError, QsupError
from qsup.host import proc
from qsup.instance import change
from qsup.instance.body import Body
from qsup.instance.departures import Departures
from qsup.instance.filing import Filing, absent, is_edited, read_files, with_besides
from qsup.instance.hold import Hold
from qsup.instance.messages import Settled, Unplugged, Waits
from qsup.instance.operation import GIVEN_UP
from qsup.instance.services import Services
from qsup.instance.setting import if_not_done
from qsup.instance.shown import Shown
from qsup.instance.teller import Teller
from qsup.instance.verdict import AT_START
from qsup.instance.works import Unreached
from qsup.unit.load import LoadedUnit
from qsup.unit.write import difference


class Pending:
    """All of that of one VM."""

    def __init__(self, shown: Shown, hold: Hold, teller: Teller, services: Services) -> None:
        self._shown = shown
        self._hold = hold
        self._teller = teller
        self._services = services
        self._departures = Departures(shown.name, hold.end, self._forget_entry)
        self._left_works: dict[str, Mapping[str, Any] | None] = {}

    # what an earlier daemon left

    def resume_departure(self, waits: Waits) -> None:
        """Wait on for a guest that an earlier daemon asked to let a device go."""
        self._departures.add(waits)

    def resume_work(self, operation: str, changes: Mapping[str, Any] | None) -> None:
        """See on to what an earlier daemon asked of the guest."""
        self._left_works[operation] = changes

    def go_on(self, body: Body) -> None:
        """The VM is there: what was left goes on."""
        self._departures.go_on(body)
        self._begin_left(body)

    def _begin_left(self, body: Body) -> None:
        for id_, changes in self._left_works.items():
            life, operation = body.life, self._services.operations.get(id_)
            written = changes is None
            if changes is None and life is not None:
                changes = difference(life.unit, self._shown.loaded.unit)
            left = operation.time_to_force(proc.uptime())
            wanted = [] if life is None else change.goals(changes or {}, life.hardware, self._shown.name, left)
            goals = [goal for goal in wanted if operation.overtaken.get(goal.key) != GIVEN_UP]
            body.works.begin(id_, goals, {"changed": True}, if_not_done(written))
        self._left_works.clear()

    async def life_over(self, body: Body) -> None:
        """The VM has ended: nothing of it goes on. What was to last the next start has, whatever the guest did."""
        await self._departures.life_over(body)
        self._begin_left(body)
        for work in body.works.life_over():
            try:
                result = await self._put_off(work)
            except QsupError as error:
                self._hold.end(work.operation, error=error)
            else:
                self._hold.end(work.operation, result)

    # devices

    def check(self, entry: str) -> None:
        """See that an entry is not on its way out; `ChangeError`."""
        self._departures.check(entry)

    def on_waits(self, body: Body, message: Waits) -> None:
        """The guest's part of a detach holds nobody."""
        if not self._services.operations.is_under_way(message.operation):
            return  # overtaken
        self._departures.add(message)
        self._hold.release(message.operation)
        body.await_release(message)
        body.settle_hardware()  # it may have gone before QEMU's answer came

    def on_unplugged(self, body: Body, message: Unplugged) -> None:
        """A device has gone, or its guest keeps it."""
        if not message.refused:
            body.settle_hardware()
        elif body.life is not None:
            self._departures.refused(body.life.hardware, message.device, body)
            self._shown.touch()

    async def on_settled(self, body: Body, message: Settled) -> None:
        """It is known what QEMU has."""
        if body.life is not None:
            for entry in message.gone:
                self._teller.removed(entry)
            self._shown.touch()
            await self._departures.settled(body.life.hardware, body)

    # works

    async def _put_off(self, work: Unreached) -> Mapping[str, Any]:
        """Have the next start bring what a guest was still at: the result.

        Raises:
            QsupError: why it does not.
        """
        operation = self._services.operations.get(work.operation)
        changes, known = operation.arguments["changes"], work.result.get("keys", {})
        words = "the VM ended before its guest had done what was asked of it"
        if changes is None:  # its unit says so already
            wanted = [key for key in change.GOALS if key in known]
        else:
            now = await read_files(self._services.load, self._shown.name)
            edited = {key for key, besides in work.besides.items() if is_edited(work.files, now, key, besides)}
            wanted = [key for key in change.goal_keys(changes) if key not in {*operation.overtaken, *edited}]
            if not operation.arguments["persist"] or not wanted:
                raise ChangeError(words, instance=self._shown.name)
            await self._filing().write(with_besides(changes, {key: work.besides.get(key, {}) for key in wanted}))
        late = {key: {**known.get(key, {}), "applied": AT_START, "why": words} for key in wanted}
        return {**work.result, "keys": {**known, **late}}

    async def cancel_work(self, operation: str) -> None:
        """Have the guest left alone with what was asked of it; `DeniedError` where that cannot be."""
        body = self._shown.body
        if body is None:
            raise DeniedError("it is not known yet what is left of it", instance=self._shown.name, hint="try again")
        await body.works.stop(operation)

    # the unit's files

    def on_filed(self, loaded: LoadedUnit) -> None:
        """A change was written down; it is known as after a reload."""
        if loaded.etag != self._shown.loaded.etag:
            self._shown.set_unit(loaded)
            data = {"added": [], "changed": [self._shown.name], "removed": []}
            self._services.publish("units-reloaded", None, data)

    def _filing(self) -> Filing:
        # told at once: a restart that follows takes the unit as it is then
        return Filing(name=self._shown.name, wanted=True, persist=self._services.persist, on_filed=self.on_filed)

    async def _forget_entry(self, entry: str) -> None:
        """Have the unit have an entry no more, which the VM has not any more."""
        await self._filing().write(absent(entry), done=f"{entry} is gone")

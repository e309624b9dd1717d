"""Changes that QEMU has taken and the guest works on: more or less memory, fewer vCPUs.

Decides: how often QEMU is asked how far the guest is, and how such an operation ends: reached, impossible, ended by
somebody, or overtaken by a later one of the same key.
Must not: hold the VM, or know what a goal is about.

A goal asks QEMU afresh each time and keeps nothing that matters, so whoever comes after a killed daemon goes on with
one that it makes from the operation's arguments.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import structlog
import trio
from attrs import define, field, frozen

from qsup.errors import DeniedError, MonitorError, OperationCancelled, QmpCommandError, QsupError
from qsup.instance.context import Changes, Context, Goal
from qsup.instance.filing import is_edited
from qsup.instance.jobs import Jobs
from qsup.instance.messages import Finished
from qsup.instance.operation import GIVEN_UP, UNWRITTEN
from qsup.instance.operations import OperationTable
from qsup.unit.compose import pick

_log = structlog.get_logger()

#: Seconds until the first look at how far the guest is, and at most between two; what it can do at once it does within
#: a tenth of a second.
_FIRST, _LONGEST = 0.02, 1.0
#: Seconds for QEMU to be told that no more is wanted.
_STOP_TIMEOUT = 15.0

#: What is said of a key that has come true, and that a later request has the unit say otherwise of.
_UNWRITTEN = "not written: a later change has its unit say something else"

MakeContext = Callable[[str], Awaitable[Context | None]]


@define(eq=False)
class _Work:
    """One operation's.

    Args:
        goals: those that are left.
        result: what is true already.
        otherwise: when a key counts that does not come true.
        told: what has come true of each goal.
        besides: what the unit is to say with it.
        files: what the unit's files said when it began, as far as this daemon knows.
        is_stopping: somebody is ending it.
    """

    operation: str
    goals: list[Goal]
    result: dict[str, Any]
    otherwise: str
    told: dict[str, Any] = field(factory=dict)
    besides: dict[str, Changes] = field(factory=dict)
    files: Changes | None = None
    is_stopping: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """What it is about."""
        return (*self.told, *(goal.key for goal in self.goals))

    def so_far(self, others: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """The operation's result with what is known now; ``others``: what else is said of keys."""
        keys: dict[str, Any] = dict(self.result.get("keys", {}))
        for told in (self.told, others):
            keys.update({key: {**keys.get(key, {}), **said} for key, said in told.items()})
        return {**self.result, "keys": keys}


@frozen
class Unreached:
    """An operation that its VM's end has left where it was.

    Args:
        result: what has come true.
        besides: what the unit is to say with each key.
        files: what the unit's files said when it began, as far as this daemon knows.
    """

    operation: str
    result: Mapping[str, Any]
    besides: Mapping[str, Changes]
    files: Changes | None


class Works:
    """All such operations of one VM.

    Args:
        jobs: where they live.
        context: makes what an operation works on; ``None`` while QEMU cannot be asked.
        file: writes keys of an operation to the VM's unit that have come true, if that is wanted, each with what is to
            be said besides.
        read: what the unit's files say now; ``None`` where that cannot be read.
        post: tells how an operation has ended.
    """

    def __init__(
        self,
        name: str,
        jobs: Jobs,
        operations: OperationTable,
        context: MakeContext,
        file: Callable[[str, Mapping[str, Changes]], Awaitable[None]],
        read: Callable[[], Awaitable[Changes | None]],
        post: Callable[[Finished], None],
    ) -> None:
        self._name = name
        self._jobs = jobs
        self._operations = operations
        self._context = context
        self._file = file
        self._read = read
        self._post = post
        self._works: dict[str, _Work] = {}

    def begin(self, operation: str, goals: Sequence[Goal], result: Mapping[str, Any], otherwise: str) -> None:
        """From now on the guest is seen to it; of an earlier daemon's operation, from where it had come.

        Args:
            result: what is true already.
            otherwise: when a key counts that does not come true, as `qsup.instance.verdict` has it.
        """
        self._works[operation] = work = _Work(operation, list(goals), dict(result), otherwise)
        self._start(work)

    def _start(self, work: _Work) -> None:
        self._jobs.start(f"work:{work.operation}", partial(self._run, work), operation=work.operation)

    async def _run(self, work: _Work) -> None:
        pause = _FIRST
        work.files = work.files or await self._read()
        try:
            while work.goals:
                await trio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST)
                context = await self._context(work.operation)
                if context is not None:
                    await self._step(work, context)
        except QsupError as error:
            error.instance = self._name
            await self._end(work, error)
        else:
            await self._end(work)

    async def _step(self, work: _Work, context: Context) -> None:
        words = []
        try:
            for goal in list(work.goals):
                if said := await goal.step(context):
                    words.append(said)
                else:
                    work.told[goal.key] = await goal.result(context)
                    work.besides[goal.key] = goal.besides
                    work.goals.remove(goal)
        except QmpCommandError:
            raise
        except MonitorError as error:
            _log.info("QEMU does not say how far the guest is", instance=self._name, why=error.message)
        if words:
            context.progress("; ".join(words))

    async def _end(self, work: _Work, error: QsupError | None = None) -> None:
        if self._works.pop(work.operation, None) is None:
            return  # somebody else has ended it meanwhile
        overtaken = {*self._overtaken(work.operation), *await self._edited(work)}
        if error is None and (written := tuple(key for key in work.told if key not in overtaken)):
            try:
                await self._file(work.operation, {key: work.besides[key] for key in written})
            except QsupError as failure:
                failure.instance = self._name
                error = failure
        result = None
        if error is None:
            result = work.so_far({key: {"why": _UNWRITTEN} for key in overtaken if key in work.told})
        else:
            failed = {goal.key: {"applied": work.otherwise, "why": error.message} for goal in work.goals}
            error.details["keys"] = work.so_far(failed)["keys"]
        await self._operations.foretell(work.operation, result=result, error=error)
        self._post(Finished(operation=work.operation, result=result, error=error))

    async def _edited(self, work: _Work) -> Sequence[str]:
        """The keys that have come true and whose unit somebody has edited meanwhile: that came later, and stays."""
        if not self._operations.get(work.operation).arguments.get("persist") or not work.told:
            return ()
        now = await self._read()
        return [key for key in work.told if is_edited(work.files, now, key, work.besides[key])]

    def _overtaken(self, operation: str) -> Mapping[str, str]:
        return self._operations.get(operation).overtaken if self._operations.is_under_way(operation) else {}

    def is_at(self, key: str) -> bool:
        """Whether something makes a key true."""
        return any(goal.key == key for work in self._works.values() for goal in work.goals)

    async def overtake(self, key: str) -> None:
        """A later operation asks for something else: what was wanted of a key is given up."""
        for work in [work for work in self._works.values() if key in work.keys]:
            work.goals = [goal for goal in work.goals if goal.key != key]
            work.told.pop(key, None)
            self._jobs.cancel(f"work:{work.operation}")
            if work.keys:
                self._start(work)
                await self._operations.overtake(work.operation, key, GIVEN_UP)
            else:
                self._works.pop(work.operation)
                error = OperationCancelled(f"overtaken by a later change of {key}", instance=self._name)
                # a later daemon must not go on with it
                await self._operations.foretell(work.operation, error=error)
                self._post(Finished(operation=work.operation, error=error))

    @asynccontextmanager
    async def overruled(self, changes: Mapping[str, Any]) -> AsyncIterator[None]:
        """While changes are written to the unit, and from then on: what is under way does not write their keys.

        One that is just being written comes first, and so does not stay.
        """
        found = [(work.operation, key) for work in self._works.values() for key in work.keys if pick(changes, [key])]
        new = [(operation, key) for operation, key in found if key not in self._overtaken(operation)]
        for operation, key in new:
            await self._operations.overtake(operation, key, UNWRITTEN)
        try:
            yield
        except QsupError:
            for operation, key in new:
                await self._operations.overtake(operation, key, "")
            raise

    async def stop(self, operation: str) -> None:
        """End one: the guest keeps what it has.

        Raises:
            DeniedError: it is none of these, or QEMU cannot be told; then it goes on.
        """
        work = self._works.get(operation)
        if work is None:
            raise DeniedError(f"operation {operation} cannot be cancelled now", instance=self._name, hint="try again")
        self._jobs.cancel(f"work:{operation}")
        work.is_stopping = True
        try:
            with trio.fail_after(_STOP_TIMEOUT):
                if (context := await self._context(operation)) is None:
                    raise DeniedError("QEMU cannot be told now", instance=self._name, hint="wait for its monitor")
                for goal in work.goals:
                    await goal.stop(context)
                context.keep()
        except (QsupError, trio.TooSlowError) as error:
            if operation not in self._works:
                return  # the VM has ended, and this with it
            work.is_stopping = False
            self._start(work)
            if isinstance(error, QsupError):
                raise
            raise DeniedError("QEMU does not answer", instance=self._name, hint="try again later") from None
        await self._end(work, OperationCancelled("cancelled", instance=self._name))

    def life_over(self) -> tuple[Unreached, ...]:
        """The VM has ended, and so have they; what somebody was just ending is cancelled.

        Returns:
            What was left of the others.
        """
        works = tuple(self._works.values())
        self._works.clear()
        self._jobs.cancel(*(f"work:{work.operation}" for work in works))
        for work in works:
            if work.is_stopping:
                error = OperationCancelled("cancelled", instance=self._name)
                self._post(Finished(operation=work.operation, error=error))
        return tuple(
            Unreached(
                work.operation,
                work.so_far(),
                work.besides | {goal.key: goal.besides for goal in work.goals},
                work.files,
            )
            for work in works
            if not work.is_stopping
        )

"""Operations: written ahead, kept for a while, waited for by anyone.

Decides: how long operations are kept, when each is written down, and what becomes of those that a dead daemon left
unfinished.
Must not: carry one out; the driver of the VM does.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import structlog
import trio
from attrs import evolve

from qsup.errors import NoSuchOperation, OperationCancelled, OverloadedError, QsupError
from qsup.host import codec, proc
from qsup.instance.keys import Keys, check_repeated
from qsup.instance.operation import LASTING, Batch, Begun, KeyUse, Operation, OperationState, new_id
from qsup.instance.operation_record import OperationRecord

_log = structlog.get_logger()

KEPT = 1000
_NONE: Mapping[str, Any] = {}
#: Most requests that join one operation.
JOINED = 100
#: Of operations that cannot be read, how many are named, and characters of an id.
_IDS_NAMED, _ID_MAX = 3, 40
#: Seconds until the end of an operation that could not be written down is written again, and for all at the end.
_RETRY, _LAST = 10.0, 2.0


class Journal(Protocol):
    """Where records go before anything is done."""

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
        """Write records, all or none, to outlive the machine with ``flush``, this process without; `NoSpaceError`."""


class OperationTable:
    """Every operation that is kept, with those that wait for them.

    Long because each step of an operation's life has its method, and all change one table.

    Args:
        journal: where an operation is recorded before its first side effect, and at its end.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._operations: OrderedDict[str, Operation] = OrderedDict()
        self._finished: dict[str, trio.Event] = {}
        self._keys = Keys()
        self._ended: dict[str, None] = {}
        self._left: set[str] = set()
        self._wakeup = trio.Event()

    async def run(self) -> None:
        """Write down how operations end, as they do; an end that cannot be written is written again later."""
        try:
            while True:
                self._wakeup = trio.Event()
                unwritten = await self._record_ends()
                with trio.move_on_after(_RETRY if unwritten else math.inf):
                    await self._wakeup.wait()
        finally:
            with trio.move_on_after(_LAST, shield=True):
                await self._record_ends()

    async def _record_ends(self) -> bool:
        """Whether any could not be written."""
        for operation_id in list(self._ended):
            try:
                with suppress(NoSuchOperation):
                    await self.record(operation_id)
            except QsupError as error:
                target = self.get(operation_id).target
                words = "the end of an operation could not be recorded"
                _log.error(words, instance=target, operation=operation_id, why=error.message)
                return True
            self._ended.pop(operation_id, None)
        return False

    def restore(self, records: Iterable[Mapping[str, Any]]) -> Sequence[str]:
        """Take in what an earlier daemon journaled; what is no operation is left out, and stays in the journal.

        Returns:
            What was left out, and why, one sentence for each reason.
        """
        newer: list[str] = []
        foreign: list[str] = []
        for record in records:
            try:
                operation = codec.decode(OperationRecord, record).operation()
            except ValueError as error:
                _log.error("not an operation in the journal", id=str(record.get("id")), why=str(error))
                (newer if isinstance(error, codec.NewerSchema) else foreign).append(str(record.get("id")))
                continue
            self._operations.pop(operation.id, None)
            self._keep(operation)
            if not operation.is_final:
                self._left.add(operation.id)
        left = {"written by a newer qsupd, which knows what became of them": newer, "no operations": foreign}
        return [f"left out, and kept as they are: {_some(ids)}: {why}" for why, ids in left.items() if ids]

    def unfinished(self) -> list[Operation]:
        """Those that have not ended, in the order in which they were asked for."""
        left = (o for o in self._operations.values() if not o.is_final)
        return sorted(left, key=lambda o: (o.boot_id == proc.boot_id(), o.uptime))

    def _keep(self, operation: Operation) -> None:
        self._operations[operation.id] = operation
        self._keys.add(operation.id, *operation.key_uses)
        if not operation.is_final:
            self._finished[operation.id] = trio.Event()
        while len(self._operations) > KEPT:
            oldest = next((o for o in self._operations.values() if o.is_final), None)
            if oldest is None:
                return
            del self._operations[oldest.id]
            self._keys.forget(oldest)

    def repeated_all(self, names: Sequence[str], use: KeyUse) -> Begun | None:
        """What a request of these VMs began that the same caller made with the same key; see `repeated`."""
        known = self.repeated(use.uid, use.key, use.kind, " ".join(names), use.timeout, use.arguments)
        if known is None:
            return None
        batch = known.batch_of(use)
        if batch is None:
            return Begun(operations=(known,))
        kept = (self._operations[each] for each in batch.operations if each in self._operations)
        return Begun(operations=tuple(kept), refused=batch.refused)

    def repeated(
        self, uid: int, key: str, kind: str, target: str, timeout: float | None, arguments: Mapping[str, Any] = _NONE
    ) -> Operation | None:
        """The operation that the same caller began with the same key, if any; a key is known as long as its operation.

        Args:
            target: the VM, or several with spaces between them.

        Raises:
            KeyReusedError: the key was used for something else.
        """
        known = self._operations.get(self._keys.find(uid, key))
        if known is not None:
            check_repeated(known, KeyUse(uid=uid, key=key, kind=kind, timeout=timeout, arguments=arguments), target)
        return known

    async def join(self, operation_id: str, use: KeyUse) -> Operation:
        """Have an operation answer a later request, too, whose key is known from now on.

        Raises:
            NoSuchOperation: there is none of that id.
            OverloadedError: it answers too many already.
        """
        operation = self.get(operation_id)
        if not use.key:
            return operation
        if len(operation.joined) >= JOINED:
            words = f"more than {JOINED} requests wait for {operation.kind} (operation {operation_id})"
            raise OverloadedError(words, instance=operation.target, hint="wait for that operation")
        self._operations[operation_id] = evolve(operation, joined=(*operation.joined, use))
        self._keys.add(operation_id, use)
        try:
            await self.record(operation_id)
        except QsupError as error:
            # what is joined is under way, and a full disk keeps nobody from stopping a VM
            _log.error("a key could not be recorded", operation=operation_id, why=error.message)
        return self.get(operation_id)

    def begin(
        self,
        kind: str,
        target: str,
        *,
        uid: int,
        key: str = "",
        timeout: float | None = None,
        arguments: Mapping[str, Any] = _NONE,
        batch: Batch | None = None,
        id: str = "",
    ) -> Operation:
        """A new operation, known from now on but not yet recorded (see `record`)."""
        now = time.time()
        operation = Operation(
            id=id or new_id(),
            kind=kind,
            target=target,
            state=OperationState.RUNNING,
            progress="accepted",
            created=now,
            updated=now,
            boot_id=proc.boot_id(),
            requested_by=uid,
            idempotency_key=key,
            timeout=timeout,
            arguments=arguments,
            batch=batch,
            uptime=proc.uptime(),
        )
        self._keep(operation)
        return operation

    async def record(self, *operation_ids: str, flush: bool = True) -> None:
        """Make operations durable as they are now: all of them or none, however soon the daemon dies.

        Args:
            flush: they are to outlive the machine, too.

        Raises:
            NoSpaceError: the file system is full.
        """
        records = (codec.encode(OperationRecord.of(self.get(each))) for each in operation_ids)
        await self._journal.append(*records, flush=flush)

    async def sending(self, operation_id: str) -> bool:
        """Write down that a command is about to be sent for it that must not be sent twice.

        Returns:
            Whether it is still to be sent: the operation may have ended meanwhile.

        Raises:
            NoSpaceError: the file system is full; it must not be sent.
        """
        if (operation := self._running(operation_id)) is not None:
            sent = evolve(operation, sent=True)
            # QEMU knows nothing of a command that a crash of this machine has ended with it
            await self._journal.append(codec.encode(OperationRecord.of(sent)), flush=False)
            if (operation := self._running(operation_id)) is not None:
                self._operations[operation_id] = evolve(operation, sent=True)
                return True
        return False

    async def foretell(
        self, operation_id: str, *, result: Mapping[str, Any] | None = None, error: QsupError | None = None
    ) -> None:
        """Write down how it is about to end, before anybody hears it; its VM's state may not tell a later daemon."""
        if (operation := self._running(operation_id)) is not None:
            await self._note(_ended(operation, result, error))

    async def account(self, operation_id: str, result: Mapping[str, Any]) -> None:
        """Write down what has become of it so far: a later daemon that goes on with it tells of that, too."""
        if (operation := self._running(operation_id)) is not None:
            self._operations[operation_id] = so_far = evolve(operation, result=result)
            await self._note(so_far)

    async def pend(self, operation_id: str, words: str) -> None:
        """QEMU has taken it, and the guest has to fulfil it; the VM is free for others meanwhile.

        A later daemon that does not know asks QEMU for it once more, which changes nothing.

        Args:
            words: where it stands.
        """
        if (operation := self._running(operation_id)) is not None:
            # what a guest works on can be left so; a device that is on its way out cannot be called back
            cancellable = operation.kind in LASTING
            pending = evolve(operation, pending=True, progress=words, updated=time.time(), cancellable=cancellable)
            self._operations[operation_id] = pending
            await self._note(pending)

    async def overtake(self, operation_id: str, key: str, how: str) -> None:
        """A later request has changed one of its keys; a later daemon knows that, too.

        Args:
            how: `qsup.instance.operation.GIVEN_UP` or `UNWRITTEN`; ``""``: it has not after all.
        """
        if (operation := self._running(operation_id)) is not None:
            others = {name: value for name, value in operation.overtaken.items() if name != key}
            overtaken = evolve(operation, overtaken=others | ({key: how} if how else {}))
            self._operations[operation_id] = overtaken
            await self._note(overtaken)

    def _running(self, operation_id: str) -> Operation | None:
        """One that has not ended."""
        operation = self._operations.get(operation_id)
        return None if operation is None or operation.is_final else operation

    async def _note(self, operation: Operation) -> None:
        """Write down what a later daemon should know of one; where that fails, one that comes soon does not know it."""
        try:
            await self._journal.append(codec.encode(OperationRecord.of(operation)), flush=False)
        except QsupError as why:
            _log.error("an operation could not be recorded", operation=operation.id, why=why.message)

    async def limit(self, operation_id: str, until: float) -> None:
        """Have it be over sooner than it was to be.

        Args:
            until: CLOCK_BOOTTIME seconds.
        """
        self._operations[operation_id] = evolve(self.get(operation_id), until=until)
        try:
            await self.record(operation_id)
        except QsupError as error:
            _log.error("a shorter time could not be recorded", operation=operation_id, why=error.message)

    def progress(self, operation_id: str, words: str) -> None:
        """Say where a running operation stands; one that has ended stays as it is."""
        if (operation := self._running(operation_id)) is not None:
            self._operations[operation_id] = evolve(operation, progress=words, updated=time.time())

    def finish(
        self, operation_id: str, *, result: Mapping[str, Any] | None = None, error: QsupError | None = None
    ) -> Operation | None:
        """End an operation: it succeeded with ``result``, or failed with ``error``.

        Returns:
            The operation as it ended, or ``None`` where nothing has changed: it had ended before, or is no longer kept.
        """
        operation = self._running(operation_id)
        if operation is None:
            return None
        operation = self._operations[operation_id] = _ended(operation, result, error)
        self._finished.pop(operation_id).set()
        self._ended[operation_id] = None
        self._wakeup.set()
        return operation

    def discard(self, operation_id: str) -> None:
        """Forget an operation that was never recorded."""
        operation = self._operations.pop(operation_id)
        self._keys.forget(operation)
        self._finished.pop(operation_id).set()

    def get(self, operation_id: str) -> Operation:
        """One operation.

        Raises:
            NoSuchOperation: there is none of that id, or it is no longer kept.
        """
        try:
            return self._operations[operation_id]
        except KeyError:
            raise NoSuchOperation(
                f"there is no operation {operation_id!r}", hint=f"the newest {KEPT} operations are kept"
            ) from None

    def all(self) -> Sequence[Operation]:
        """Every operation, newest first."""
        return tuple(reversed(self._operations.values()))

    async def wait_final(self, operation_id: str, seconds: float) -> Operation:
        """The operation once it is final, or as it is after ``seconds``.

        Raises:
            NoSuchOperation: there is none of that id.
        """
        self.get(operation_id)
        if (finished := self._finished.get(operation_id)) is not None:
            with trio.move_on_after(seconds):
                await finished.wait()
        return self.get(operation_id)

    def was_left(self, operation_id: str) -> bool:
        """Whether an earlier daemon left it unfinished, and may have done some of it."""
        return operation_id in self._left

    def is_under_way(self, operation_id: str) -> bool:
        """Whether an operation has not ended; also of one that is no longer kept."""
        return operation_id in self._finished

    async def wait_ended(self, operation_id: str) -> None:
        """Wait until an operation has ended, be it kept that long or not; the caller sets the deadline."""
        if (finished := self._finished.get(operation_id)) is not None:
            await finished.wait()


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _IDS_NAMED} more" if len(ids) > _IDS_NAMED else ""
    return ", ".join(each[:_ID_MAX] for each in ids[:_IDS_NAMED]) + more


def _ended(operation: Operation, result: Mapping[str, Any] | None, error: QsupError | None) -> Operation:
    state = OperationState.SUCCEEDED if error is None else OperationState.FAILED
    if isinstance(error, OperationCancelled):
        state = OperationState.CANCELLED
    return evolve(
        operation,
        state=state,
        progress="done" if error is None else state.value,
        updated=time.time(),
        result=(result or {}) if error is None else None,
        error=error,
        cancellable=False,
    )

"""Operations: written ahead, kept for a while, waited for by anyone.

Decides: how long operations are kept, how a repeated ``Idempotency-Key`` is answered, and what becomes of those that a
dead daemon left unfinished.
Must not: carry one out; the driver of the VM does.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
import trio
from attrs import evolve

from qsup.errors import DeniedError, NoSuchOperation, QsupError, RequestError
from qsup.instance.operation import Operation, OperationState

_log = structlog.get_logger()

KEPT = 1000
#: What ends the operations that a stop does not.
_INSTEAD = {"stop": "kill the VM to end it at once", "kill": "it ends with the VM's process"}


class Journal(Protocol):
    """Where records go before anything is done."""

    async def append(self, record: dict[str, Any]) -> None:
        """Make a record durable; `NoSpaceError`."""


def to_record(operation: Operation) -> dict[str, Any]:
    """The journal's form of an operation, JSON values."""
    error = operation.error
    return {
        "id": operation.id,
        "kind": operation.kind,
        "target": operation.target,
        "state": operation.state.value,
        "progress": operation.progress,
        "created": operation.created,
        "updated": operation.updated,
        "result": None if operation.result is None else dict(operation.result),
        "error": None if error is None else error_to_record(error),
        "requested_by": operation.requested_by,
        "idempotency_key": operation.idempotency_key,
    }


def error_to_record(error: QsupError) -> dict[str, Any]:
    """An error in JSON values, class by its stable code."""
    return {
        "code": error.code,
        "status": error.status,
        "message": error.message,
        "instance": error.instance,
        "hint": error.hint,
        "details": error.details,
    }


class RecordedError(QsupError):
    """An error read back from the journal: the same words and code, no longer the same class."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(
            str(record.get("message", "")),
            instance=str(record.get("instance", "")),
            hint=str(record.get("hint", "")),
            **{str(k): v for k, v in dict(record.get("details") or {}).items()},
        )
        # the instance's own: a class attribute would be shared by all recorded errors
        self.__dict__["code"] = str(record.get("code", "internal"))
        self.__dict__["status"] = int(record.get("status", 500))


def from_record(record: Mapping[str, Any]) -> Operation:
    """An operation from its journal's form.

    Raises:
        KeyError, ValueError, TypeError: the record is not one.
    """
    error = record["error"]
    return Operation(
        id=str(record["id"]),
        kind=str(record["kind"]),
        target=str(record["target"]),
        state=OperationState(record["state"]),
        progress=str(record["progress"]),
        created=float(record["created"]),
        updated=float(record["updated"]),
        result=record["result"],
        error=None if error is None else RecordedError(error),
        requested_by=int(record["requested_by"]),
        idempotency_key=str(record["idempotency_key"]),
    )


class OperationTable:
    """Every operation that is kept, with those that wait for them.

    Args:
        journal: where an operation is recorded before its first side effect, and at its end.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._operations: OrderedDict[str, Operation] = OrderedDict()
        self._finished: dict[str, trio.Event] = {}
        self._by_key: dict[tuple[int, str], str] = {}
        self._ended: list[str] = []
        self._wakeup = trio.Event()

    async def run(self) -> None:
        """Write down how operations end, as they do; an end that cannot be written is told by the VM's state later."""
        while True:
            while self._ended:
                ended, self._ended = self._ended, []
                for operation_id in ended:
                    await self._record_end(operation_id)
            self._wakeup = trio.Event()
            await self._wakeup.wait()

    async def _record_end(self, operation_id: str) -> None:
        if operation_id not in self._operations:
            return
        try:
            await self.record(operation_id)
        except QsupError as error:
            _log.error("the end of an operation could not be recorded", operation=operation_id, why=error.message)

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in what an earlier daemon journaled; what is no operation is left out and logged."""
        for record in records:
            try:
                operation = from_record(record)
            except (KeyError, ValueError, TypeError) as error:
                _log.error("not an operation in the journal", id=str(record.get("id")), why=repr(error))
                continue
            self._operations.pop(operation.id, None)
            self._keep(operation)

    def unfinished(self) -> tuple[Operation, ...]:
        """Those that have not ended."""
        return tuple(o for o in self._operations.values() if not o.is_final)

    def _keep(self, operation: Operation) -> None:
        self._operations[operation.id] = operation
        if operation.idempotency_key:
            self._by_key[operation.requested_by, operation.idempotency_key] = operation.id
        if not operation.is_final:
            self._finished[operation.id] = trio.Event()
        while len(self._operations) > KEPT:
            oldest = next((o for o in self._operations.values() if o.is_final), None)
            if oldest is None:
                return
            del self._operations[oldest.id]
            self._by_key.pop((oldest.requested_by, oldest.idempotency_key), None)

    def repeated(self, uid: int, key: str, kind: str, target: str) -> Operation | None:
        """The operation that the same caller began with the same key, if any.

        Raises:
            RequestError: the key was used for something else.
        """
        known = self._operations.get(self._by_key.get((uid, key), "")) if key else None
        if known is not None and (known.kind, known.target) != (kind, target):
            raise RequestError(
                f"the Idempotency-Key was used for {known.kind} of {known.target}",
                hint="use a new key for each request",
            )
        return known

    def begin(self, kind: str, target: str, *, uid: int, key: str = "") -> Operation:
        """A new operation, known from now on but not yet recorded (see `record`)."""
        now = time.time()
        operation = Operation(
            id=uuid.uuid4().hex,
            kind=kind,
            target=target,
            state=OperationState.RUNNING,
            progress="accepted",
            created=now,
            updated=now,
            requested_by=uid,
            idempotency_key=key,
        )
        self._keep(operation)
        return operation

    async def record(self, operation_id: str) -> None:
        """Make the operation durable as it is now.

        Raises:
            NoSpaceError: the file system is full.
        """
        await self._journal.append(to_record(self.get(operation_id)))

    def progress(self, operation_id: str, words: str) -> None:
        """Say where a running operation stands; one that has ended stays as it is."""
        operation = self._operations.get(operation_id)
        if operation is not None and not operation.is_final:
            self._operations[operation_id] = evolve(operation, progress=words, updated=time.time())

    def finish(
        self, operation_id: str, *, result: Mapping[str, Any] | None = None, error: QsupError | None = None
    ) -> Operation | None:
        """End an operation: it succeeded with ``result``, or failed with ``error``.

        Returns:
            The operation as it ended, or ``None`` where nothing has changed: it had ended before, or is no longer kept.
        """
        operation = self._operations.get(operation_id)
        if operation is None or operation.is_final:
            return None
        operation = evolve(
            operation,
            state=OperationState.SUCCEEDED if error is None else OperationState.FAILED,
            progress="done" if error is None else "failed",
            updated=time.time(),
            result=(result or {}) if error is None else None,
            error=error,
            cancellable=False,
        )
        self._operations[operation_id] = operation
        self._finished.pop(operation_id).set()
        self._ended.append(operation_id)
        self._wakeup.set()
        return operation

    def discard(self, operation_id: str) -> None:
        """Forget an operation that was never recorded."""
        operation = self._operations.pop(operation_id)
        self._by_key.pop((operation.requested_by, operation.idempotency_key), None)
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

    def cancel(self, operation_id: str) -> Operation:
        """End a cancellable operation, which no kind is yet.

        Raises:
            NoSuchOperation: there is none of that id.
            DeniedError: it cannot be cancelled.
        """
        operation = self.get(operation_id)
        raise DeniedError(
            f"operation {operation_id} ({operation.kind}) "
            + ("has ended" if operation.is_final else "cannot be cancelled"),
            instance=operation.target,
            hint="" if operation.is_final else _INSTEAD.get(operation.kind, "stop or kill the VM to end it"),
        )

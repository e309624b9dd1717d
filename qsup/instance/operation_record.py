"""An operation as the journal keeps it.

Decides: its JSON shape, a line for each time that it is written down.
Must not: say when it is (`qsup.instance.operations`), or what its words mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen

from qsup.errors import QsupError
from qsup.host import codec
from qsup.host.records import LATEST, within
from qsup.instance.operation import LASTING, Batch, KeyUse, Operation, OperationState


class RecordedError(QsupError):
    """An error read back from the journal: the same words and code, no longer the same class."""

    def __init__(self, record: ErrorRecord) -> None:
        super().__init__(record.message, instance=record.instance, hint=record.hint)
        self.details = dict(record.details)
        # the instance's own: a class attribute would be shared by all recorded errors
        self.__dict__["code"] = record.code
        self.__dict__["status"] = record.status


@frozen(kw_only=True)
class ErrorRecord:
    """An error in plain values, its class by its stable code."""

    code: str
    status: int
    message: str
    instance: str
    hint: str
    details: Mapping[str, Any]

    @classmethod
    def of(cls, error: QsupError) -> ErrorRecord:
        """Take an error apart."""
        return cls(
            code=error.code,
            status=error.status,
            message=error.message,
            instance=error.instance,
            hint=error.hint,
            details=error.details,
        )


@frozen(kw_only=True)
class BatchRecord:
    """A `Batch` in plain values."""

    names: tuple[str, ...]
    operations: tuple[str, ...]
    refused: Mapping[str, ErrorRecord]

    @classmethod
    def of(cls, batch: Batch) -> BatchRecord:
        """Take a batch apart."""
        refused = {name: ErrorRecord.of(error) for name, error in batch.refused.items()}
        return cls(names=batch.names, operations=batch.operations, refused=refused)

    def batch(self) -> Batch:
        """Put it together again."""
        refused = {name: RecordedError(error) for name, error in self.refused.items()}
        return Batch(names=self.names, operations=self.operations, refused=refused)


@frozen(kw_only=True)
class OperationRecord:
    """An `Operation` in plain values; whether it can be cancelled follows from them."""

    SCHEMA: ClassVar[int] = 1
    UPGRADES: ClassVar[codec.Upgrades] = {}

    id: str
    kind: str
    target: str
    state: str
    progress: str
    created: float = field(validator=within(0, LATEST))
    updated: float = field(validator=within(0, LATEST))
    boot_id: str
    result: Mapping[str, Any] | None
    error: ErrorRecord | None
    requested_by: int
    idempotency_key: str
    timeout: float | None
    sent: bool
    joined: tuple[KeyUse, ...]
    arguments: Mapping[str, Any]
    pending: bool
    batch: BatchRecord | None
    until: float | None = field(validator=within(0, LATEST))
    uptime: float = field(validator=within(0, LATEST))
    overtaken: Mapping[str, str]

    @classmethod
    def of(cls, operation: Operation) -> OperationRecord:
        """Take an operation apart."""
        return cls(
            id=operation.id,
            kind=operation.kind,
            target=operation.target,
            state=operation.state.value,
            progress=operation.progress,
            created=operation.created,
            updated=operation.updated,
            boot_id=operation.boot_id,
            result=operation.result,
            error=None if operation.error is None else ErrorRecord.of(operation.error),
            requested_by=operation.requested_by,
            idempotency_key=operation.idempotency_key,
            timeout=operation.timeout,
            sent=operation.sent,
            joined=operation.joined,
            arguments=operation.arguments,
            pending=operation.pending,
            batch=None if operation.batch is None else BatchRecord.of(operation.batch),
            until=operation.until,
            uptime=operation.uptime,
            overtaken=operation.overtaken,
        )

    def operation(self) -> Operation:
        """Put it together again.

        Raises:
            ValueError: a state that this version does not know.
        """
        return Operation(
            id=self.id,
            kind=self.kind,
            target=self.target,
            state=OperationState(self.state),
            progress=self.progress,
            created=self.created,
            updated=self.updated,
            boot_id=self.boot_id,
            result=self.result,
            error=None if self.error is None else RecordedError(self.error),
            requested_by=self.requested_by,
            idempotency_key=self.idempotency_key,
            timeout=self.timeout,
            sent=self.sent,
            joined=self.joined,
            arguments=self.arguments,
            pending=self.pending,
            batch=None if self.batch is None else self.batch.batch(),
            until=self.until,
            uptime=self.uptime,
            overtaken=self.overtaken,
            cancellable=self.pending and self.state == OperationState.RUNNING.value and self.kind in LASTING,
        )

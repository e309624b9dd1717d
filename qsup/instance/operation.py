"""A change that talks to QEMU, from its acceptance to its end. Pure.

Decides: what is recorded of an operation, which of its states are final, and what is said of one that cannot be
cancelled.
Must not: carry it out, or write it to disk (`qsup.instance.operations` keeps them).
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from qsup.errors import DeniedError, QsupError

#: The kinds that can be ended while the guest works on them.
LASTING = frozenset({"set"})
#: Why a detach is not cancellable.
NOT_TAKEN_BACK = "QEMU does not take a request to unplug back"
#: What becomes of a key of an operation once a later request has changed it: the guest is not asked for it any more; or
#: it is, and the unit is not changed when it comes true.
GIVEN_UP, UNWRITTEN = "given-up", "unwritten"
#: What ends the operations that a stop does not.
_INSTEAD = {
    "stop": "kill the VM to end it at once",
    "kill": "it ends with the VM's process",
    "stop-all": "kill the VMs to end it at once",
}


class OperationState(enum.Enum):
    """How far an operation is. All but `RUNNING` are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@frozen(kw_only=True)
class KeyUse:
    """An ``Idempotency-Key`` and the request that it came with: a caller's, of a kind, with all that it asked for."""

    uid: int
    key: str
    kind: str
    timeout: float | None
    arguments: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class Batch:
    """What one request began on several VMs; kept with the first of its operations.

    Args:
        names: the VMs, as they were named.
        operations: ids, in that order, of those VMs for which there is one.
        refused: why there is none, by name.
    """

    names: tuple[str, ...]
    operations: tuple[str, ...]
    refused: Mapping[str, QsupError]


@frozen(kw_only=True)
class Operation:
    """One operation.

    Args:
        id: a UUID's 32 hexadecimal digits.
        kind: the verb, such as ``start``.
        target: the instance's name, ``""`` for what concerns all.
        progress: where it stands: ``accepted``, the VM's substate from then on or what it waits for, ``done``,
            ``failed`` or ``cancelled``.
        created, updated: wall clock, seconds since the epoch; it may have been set meanwhile.
        boot_id: the boot of the host in which it was asked for, which no clock tells.
        cancellable: whether ``DELETE`` can end it: a change that the guest works on.
        result: what came out, JSON values; ``None`` until it succeeded.
        error: why it failed or was cancelled.
        requested_by: uid of the caller, -1 for the daemon itself.
        idempotency_key: the client's key, or ``""``.
        timeout: seconds in place of the unit's ``stop-timeout``, or that all of it may take.
        sent: a command may have reached QEMU that is not to be repeated unasked.
        joined: the keys of later requests that this operation answers, too.
        arguments: what was asked for besides, JSON values.
        pending: QEMU has taken it and the guest has to fulfil it; it holds the VM no more.
        uptime: CLOCK_BOOTTIME seconds of when it was asked for.
        batch: the rest of what its own request began, where that named several VMs and this is the first.
        until: CLOCK_BOOTTIME seconds by when all of it is to be over, where a later request has said so.
        overtaken: of its keys those that a later request has changed: `GIVEN_UP` or `UNWRITTEN`.
    """

    id: str
    kind: str
    target: str
    state: OperationState
    progress: str
    created: float
    updated: float
    boot_id: str
    cancellable: bool = False
    result: Mapping[str, Any] | None = None
    error: QsupError | None = None
    requested_by: int = -1
    idempotency_key: str = ""
    timeout: float | None = None
    sent: bool = False
    joined: tuple[KeyUse, ...] = ()
    arguments: Mapping[str, Any] = field(factory=dict)
    pending: bool = False
    until: float | None = None
    uptime: float = 0.0
    batch: Batch | None = None
    overtaken: Mapping[str, str] = field(factory=dict)

    @property
    def key_uses(self) -> tuple[KeyUse, ...]:
        """Every key that stands for it."""
        if not self.idempotency_key:
            return self.joined
        own = KeyUse(
            uid=self.requested_by,
            key=self.idempotency_key,
            kind=self.kind,
            timeout=self.timeout,
            arguments=self.arguments,
        )
        return (own, *self.joined)

    def batch_of(self, use: KeyUse) -> Batch | None:
        """All that the request began which came with one of its keys; ``None``: this operation alone."""
        own = (use.uid, use.key) == (self.requested_by, self.idempotency_key)
        return self.batch if own else None

    def time_to_force(self, uptime: float) -> float | None:
        """Seconds that the guest still has to let devices go before it is reset; ``None``: as long as it likes.

        Args:
            uptime: CLOCK_BOOTTIME seconds of now, in the boot in which it was asked for.
        """
        force_after = self.arguments.get("force_after")
        return None if force_after is None else max(self.uptime + float(force_after) - uptime, 0.0)

    @property
    def is_final(self) -> bool:
        """Whether it can change no more."""
        return self.state is not OperationState.RUNNING


def uncancellable(operation: Operation) -> DeniedError:
    """Why an operation that is not cancellable is not."""
    words, hint = "cannot be cancelled", _INSTEAD.get(operation.kind, "stop or kill the VM to end it")
    if operation.is_final:
        words, hint = "has ended", ""
    elif operation.pending:
        words = f"cannot be cancelled: {NOT_TAKEN_BACK}"
        hint = "the guest lets the device go, or refuses to; a reset of the guest, or its end, has it go"
    words = f"operation {operation.id} ({operation.kind}) {words}"
    return DeniedError(words, instance=operation.target, hint=hint)


def new_id() -> str:
    """For an operation that is to be: a UUID's 32 hexadecimal digits."""
    return uuid.uuid4().hex


@frozen(kw_only=True)
class Begun:
    """What came of a request of one VM or several.

    Args:
        operations: one for each VM that was not refused, in the order in which they were named.
        refused: the others, and why nothing was begun on them.
    """

    operations: tuple[Operation, ...]
    refused: Mapping[str, QsupError] = field(factory=dict)

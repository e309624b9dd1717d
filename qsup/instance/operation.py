"""A change that talks to QEMU, from its acceptance to its end. Pure.

Decides: what is recorded of an operation and which of its states are final.
Must not: carry it out, or write it to disk (`qsup.instance.operations` keeps them).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from qsup.errors import QsupError


class OperationState(enum.Enum):
    """How far an operation is. All but `RUNNING` are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@frozen(kw_only=True)
class KeyUse:
    """An ``Idempotency-Key`` and the request that it came with: a caller's, of a kind, with its timeout."""

    uid: int
    key: str
    kind: str
    timeout: float | None


@frozen(kw_only=True)
class Operation:
    """One operation.

    Args:
        id: a UUID's 32 hexadecimal digits.
        kind: the verb, such as ``start``.
        target: the instance's name, ``""`` for what concerns all.
        progress: where it stands: ``accepted``, the VM's substate from then on or what it waits for, ``done`` or
            ``failed``.
        created, updated: wall clock, seconds since the epoch.
        cancellable: whether ``DELETE`` can end it; none can yet.
        result: what came out, JSON values; ``None`` until it succeeded.
        error: why it failed or was cancelled.
        requested_by: uid of the caller, -1 for the daemon itself.
        idempotency_key: the client's key, or ``""``.
        timeout: seconds in place of the unit's ``stop-timeout``, or that all of it may take.
        sent: a command may have reached QEMU that is not to be repeated unasked.
        joined: the keys of later requests that this operation answers, too.
        arguments: what was asked for besides, JSON values.
        pending: QEMU has taken it and the guest has to fulfil it; it holds the VM no more.
    """

    id: str
    kind: str
    target: str
    state: OperationState
    progress: str
    created: float
    updated: float
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

    @property
    def key_uses(self) -> tuple[KeyUse, ...]:
        """Every key that stands for it."""
        if not self.idempotency_key:
            return self.joined
        own = KeyUse(uid=self.requested_by, key=self.idempotency_key, kind=self.kind, timeout=self.timeout)
        return (own, *self.joined)

    @property
    def is_final(self) -> bool:
        """Whether it can change no more."""
        return self.state is not OperationState.RUNNING

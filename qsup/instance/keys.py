"""Each ``Idempotency-Key`` that is known, and the operation that it stands for. Pure.

Decides: whether a repeated request is the one that a key came with.
Must not: keep an operation, or begin one; `qsup.instance.operations` does.
"""

from __future__ import annotations

from qsup.errors import KeyReusedError
from qsup.instance.operation import KeyUse, Operation
from qsup.unit.quantity import format_duration


class Keys:
    """The keys of all operations that are kept, by caller."""

    def __init__(self) -> None:
        self._operations: dict[tuple[int, str], str] = {}

    def add(self, operation_id: str, *uses: KeyUse) -> None:
        """Know keys that stand for an operation."""
        self._operations.update(((use.uid, use.key), operation_id) for use in uses)

    def forget(self, operation: Operation) -> None:
        """The operation is kept no longer, and neither are its keys."""
        for use in operation.key_uses:
            self._operations.pop((use.uid, use.key), None)

    def find(self, uid: int, key: str) -> str:
        """The id of the operation that a caller's key stands for, ``""`` for none."""
        return self._operations.get((uid, key), "") if key else ""


def check_repeated(known: Operation, asked: KeyUse, target: str) -> None:
    """See that a request is the one which its key came with before.

    Args:
        known: what the key stands for.
        target: the VM, or several with spaces between them.

    Raises:
        KeyReusedError: it asks for something else.
    """
    use = next(use for use in known.key_uses if (use.uid, use.key) == (asked.uid, asked.key))
    batch = known.batch_of(use)
    about = known.target if batch is None else " ".join(batch.names)
    if (use, about) != (asked, target):
        given = f" of {about}" if about else ""
        given += "" if use.timeout is None else f" with a timeout of {format_duration(use.timeout)}"
        raise KeyReusedError(
            f"the Idempotency-Key was used for {use.kind}{given} (operation {known.id})",
            instance="" if " " in target else target,
            hint="use a new key for each request, and repeat a request as it was",
            operation=known.id,
        )

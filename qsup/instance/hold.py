"""Which operation holds a VM, and how it ends.

Decides: that one operation holds a VM at a time, and that each end is told once.
Must not: judge whether an operation is done (`qsup.instance.settle`), or whether one may overtake another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from qsup.errors import DeniedError, QsupError
from qsup.instance.operations import OperationTable
from qsup.instance.settle import Holder
from qsup.instance.state import Request
from qsup.instance.teller import Teller


class Hold:
    """The hold that operations have on one VM.

    Args:
        touch: called when another holds it, or none.

    Attributes:
        holder: the one that does.
    """

    def __init__(self, name: str, operations: OperationTable, teller: Teller, touch: Callable[[], None]) -> None:
        self.holder: Holder | None = None
        self._name = name
        self._operations = operations
        self._teller = teller
        self._touch = touch
        self._log = structlog.get_logger().bind(instance=name)

    @property
    def operation(self) -> str | None:
        """The id of the one that holds the VM."""
        return self.holder.operation if self.holder else None

    @property
    def is_to_stop(self) -> bool:
        """Whether a stop was accepted, though it may still be waiting for its turn."""
        return self.holder is not None and self.holder.request in (Request.STOP, Request.KILL)

    def take(self, holder: Holder) -> None:
        """Take a request that was judged; the holder before it, if any, has been overtaken."""
        if self.holder is not None:
            overtaken = DeniedError(f"overtaken by {holder.request.value}", instance=self._name)
            self._operations.finish(self.holder.operation, error=overtaken)
            self._log.info("operation ended", operation=self.holder.operation, outcome="failed", why=overtaken.message)
        self.holder = holder
        self._touch()

    def release(self, operation: str) -> None:
        """Let the VM go if this operation holds it."""
        if self.holder is not None and self.holder.operation == operation:
            self.holder = None
            self._touch()

    def end(self, operation: str, result: Mapping[str, Any] | None = None, error: QsupError | None = None) -> None:
        """End an operation, be it the one that holds the VM or not; one that has ended before is not told again."""
        finished = self._operations.finish(operation, result=result, error=error)
        self.release(operation)
        if finished is None:
            return
        why, outcome = error.message if error else None, finished.state.value
        self._log.info("operation ended", operation=operation, kind=finished.kind, outcome=outcome, why=why)
        data = {"operation": operation, "kind": finished.kind, "state": outcome}
        self._teller.operation_ended(data | ({"error": error.message} if error else {}))

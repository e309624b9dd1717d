"""Operations: what is kept of them, and how they end."""

from __future__ import annotations

from typing import Any

from qsup.errors import QsupError
from qsup.instance.operation import OperationState
from qsup.instance.operations import KEPT, OperationTable


class _Memory:
    """A journal that keeps nothing."""

    async def append(self, record: dict[str, Any]) -> None:
        """Forget it."""


async def test_an_operation_ends_once() -> None:
    """The first end counts; a later one, or what its task still says, changes nothing and is known by ``None``."""
    table = OperationTable(_Memory())
    operation = table.begin("stop", "web", uid=0)
    ended = table.finish(operation.id, result={"changed": True})
    assert ended is not None
    assert ended.state is OperationState.SUCCEEDED
    assert table.finish(operation.id, error=QsupError("late")) is None
    table.progress(operation.id, "late")
    assert table.get(operation.id) is ended


async def test_the_end_of_an_operation_that_is_no_longer_kept_changes_nothing() -> None:
    """Whoever ends an operation late, after a thousand others, neither fails nor brings it back."""
    table = OperationTable(_Memory())
    first = table.begin("start", "web", uid=0)
    table.finish(first.id)
    for _ in range(KEPT):
        table.begin("start", "web", uid=0)
    assert table.finish(first.id, error=QsupError("late")) is None
    table.progress(first.id, "late")
    assert first.id not in [operation.id for operation in table.all()]

"""A driver without a VM: what others may rely on when it fails."""

from __future__ import annotations

from typing import Any

from qsup.host.claims import Claims
from qsup.instance.driver import Driver
from qsup.instance.operation import OperationState
from qsup.instance.operations import OperationTable
from qsup.instance.services import Services
from qsup.instance.settle import Holder
from qsup.instance.state import Request
from qsup.unit.load import LoadedUnit
from qsup.unit.model import Unit


class _Memory:
    """A journal that keeps nothing."""

    async def append(self, record: dict[str, Any]) -> None:
        """Forget it."""


def _unused(*_arguments: Any, **_named: Any) -> Any:
    raise AssertionError("not to be called")


def driver(told: list[str]) -> Driver:
    """One whose events are put into a list."""
    services = Services(
        layout=_unused,  # type: ignore[arg-type]  # never called by these tests
        load=_unused,
        facts=_unused,
        capabilities=_unused,
        claims=Claims(),
        cgroups=_unused,  # type: ignore[arg-type]  # never called by these tests
        identities=_unused,  # type: ignore[arg-type]  # never called by these tests
        operations=OperationTable(_Memory()),
        publish=lambda event_type, instance, data: told.append(event_type),
        block_devices=(),
        uids=None,
        on_latency=_unused,
    )
    return Driver(LoadedUnit(name="web", unit=Unit(), files=(), etag="", text=""), services)


async def test_whoever_waits_for_an_operation_hears_of_a_driver_that_failed() -> None:
    """The operation ends as failed by a bug, and the VM is free for the next."""
    told: list[str] = []
    failed = driver(told)
    operations = failed._services.operations
    operation = operations.begin("start", "web", uid=0)
    failed.hold(Holder(operation=operation.id, request=Request.START))
    failed.abandon()
    ended = await operations.wait_final(operation.id, 0)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert "by a bug" in ended.error.message
    assert (failed.holder, told) == (None, ["operation"])
    failed.abandon()
    assert told == ["operation"]


async def test_an_operation_that_has_ended_is_not_told_again() -> None:
    """Whatever ends late, one event tells the end of an operation."""
    told: list[str] = []
    late = driver(told)
    operation = late._services.operations.begin("start", "web", uid=0)
    late._end_operation(operation.id)
    late._end_operation(operation.id)
    late._end_operation("no longer kept")
    assert told == ["operation"]

"""Operations: what is kept of them, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve

from qsup.errors import KeyReusedError, NoSpaceError, NoSuchInstance, OverloadedError, QsupError
from qsup.host.journal import Journal
from qsup.instance.operation import Batch, Begun, KeyUse, Operation, OperationState
from qsup.instance.operations import JOINED, KEPT, OperationTable


class _Memory:
    """A journal that keeps nothing."""

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
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


class _Lines:
    """A journal in memory, which may be full.

    Attributes:
        kept: the last record of each operation, as a later daemon would find it.
        flushed: whether each record was to outlive the machine.
    """

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.flushed: list[bool] = []
        self.full = False

    async def append(self, *records: dict[str, Any], flush: bool = True) -> None:
        """Keep it, or be full."""
        await trio.lowlevel.checkpoint()
        if self.full:
            raise NoSpaceError("No space left on device")
        for record in records:
            self.kept[record["id"]] = record
            self.flushed.append(flush)

    def later(self) -> OperationTable:
        """What the next daemon makes of it."""
        table = OperationTable(_Memory())
        table.restore(self.kept.values())
        return table


async def test_a_key_is_known_to_the_next_daemon() -> None:
    """The same caller, key and request get the same operation; anything else with that key is refused, and says why."""
    journal = _Lines()
    table = OperationTable(journal)
    first = table.begin("stop", "web", uid=7, key="one", timeout=5.0)
    await table.record(first.id)
    for known in (table, journal.later()):
        found = known.repeated(7, "one", "stop", "web", 5.0)
        assert found is not None
        assert found.id == first.id
        assert known.repeated(8, "one", "stop", "web", 5.0) is None
        assert known.repeated(7, "", "stop", "web", 5.0) is None
        for kind, target, timeout in (("kill", "web", 5.0), ("stop", "db", 5.0), ("stop", "web", None)):
            with pytest.raises(KeyReusedError, match="was used for stop of web with a timeout of 5s") as refused:
                known.repeated(7, "one", kind, target, timeout)
            assert (refused.value.status, refused.value.details["operation"]) == (422, first.id)


async def test_a_key_of_a_request_of_several_vms_is_known_to_the_next_daemon() -> None:
    """It gets all the operations that the first request began, and the refusals in the same words."""
    journal = _Lines()
    table = OperationTable(journal)
    names, use = ("db", "gone", "web"), KeyUse(uid=7, key="one", kind="start", timeout=None)
    batch = Batch(names=names, operations=("a" * 32, "b" * 32), refused={"gone": NoSuchInstance("no unit", hint="?")})
    table.begin("start", "db", uid=7, key="one", id="a" * 32, batch=batch)
    table.begin("start", "web", uid=7, id="b" * 32)
    await table.record("a" * 32, "b" * 32)
    later = journal.later()
    for known in (table, later):
        found = known.repeated_all(names, use)
        assert found is not None
        assert [operation.target for operation in found.operations] == ["db", "web"]
        (refused,) = found.refused.values()
        assert (refused.code, refused.message, refused.hint) == (NoSuchInstance.code, "no unit", "?")
        for others in (("db", "web"), ("web", "gone", "db"), ("db",)):
            with pytest.raises(KeyReusedError, match="was used for start of db gone web"):
                known.repeated_all(others, use)
        with pytest.raises(KeyReusedError):
            known.repeated(7, "one", "start", "db", None)
        assert known.repeated_all(names, evolve(use, uid=8)) is None
    del table._operations["b" * 32]
    found = table.repeated_all(names, use)
    assert found is not None
    assert [operation.target for operation in found.operations] == ["db"]


async def test_a_request_of_one_vm_is_the_same_by_either_way() -> None:
    """Named alone among several that could be, or by the route that is about one."""
    table = OperationTable(_Memory())
    operation = table.begin("stop", "web", uid=7, key="one")
    use = KeyUse(uid=7, key="one", kind="stop", timeout=None)
    assert table.repeated_all(["web"], use) == Begun(operations=(operation,))
    await table.join(operation.id, evolve(use, key="two"))
    assert table.repeated_all(["web"], evolve(use, key="two")) == Begun(operations=(table.get(operation.id),))


def open_journal(path: Path) -> Journal:
    """A journal of operations on disk."""
    return Journal(
        path, key=lambda record: str(record["id"]), keep=KEPT, spare=lambda record: bool(record["state"] == "running")
    )


async def test_a_request_that_joins_an_operation_is_repeated_safely() -> None:
    """Two callers stop a VM: the key of the second stands for the operation of the first, by the next daemon, too."""
    journal = _Lines()
    table = OperationTable(journal)
    stop = table.begin("kill", "web", uid=1, key="one")
    await table.record(stop.id)
    assert (await table.join(stop.id, KeyUse(uid=2, key="", kind="stop", timeout=None))).joined == ()
    assert (await table.join(stop.id, KeyUse(uid=2, key="two", kind="stop", timeout=3.0))).id == stop.id
    table.finish(stop.id)
    await table.record(stop.id)
    later = journal.later()
    for known in (table, later):
        for uid, key, kind, timeout in ((1, "one", "kill", None), (2, "two", "stop", 3.0)):
            found = known.repeated(uid, key, kind, "web", timeout)
            assert found is not None
            assert found.id == stop.id
        with pytest.raises(KeyReusedError, match="was used for stop of web with a timeout of 3s"):
            known.repeated(2, "two", "kill", "web", None)
        assert known.repeated(2, "one", "kill", "web", None) is None


async def test_joining_is_bounded_and_survives_a_full_disk() -> None:
    """A key that cannot be written down is known to this daemon; too many are refused."""
    journal = _Lines()
    table = OperationTable(journal)
    stop = table.begin("stop", "web", uid=1)
    journal.full = True
    for number in range(JOINED):
        await table.join(stop.id, KeyUse(uid=2, key=str(number), kind="stop", timeout=None))
    assert table.repeated(2, "0", "stop", "web", None) is not None
    with pytest.raises(OverloadedError, match="more than 100 requests wait"):
        await table.join(stop.id, KeyUse(uid=2, key="more", kind="stop", timeout=None))
    table.discard(stop.id)
    assert table.repeated(2, "0", "stop", "web", None) is None


async def test_keys_are_kept_with_their_operations(tmp_path: Path) -> None:
    """The newest thousand, by this daemon and the next; one that is under way is never forgotten."""
    journal = open_journal(tmp_path / "operations.jsonl")
    table = OperationTable(journal)
    held = table.begin("stop", "slow", uid=0, key="held")
    await table.record(held.id)
    for first in range(0, KEPT + 201, 201):  # those of a batch share their flushes
        async with trio.open_nursery() as nursery:
            for number in range(first, first + 201):
                begun = table.begin("start", "web", uid=0, key=f"key {number}")
                table.finish(begun.id)
                nursery.start_soon(table.record, begun.id)
    journal.close()
    later = OperationTable(_Memory())
    later.restore(open_journal(tmp_path / "operations.jsonl").records())
    for known in (table, later):
        assert len(known.all()) == KEPT
        assert known.repeated(0, "held", "stop", "slow", None) is not None
        assert known.repeated(0, "key 1", "start", "web", None) is None
        assert known.repeated(0, f"key {KEPT + 200}", "start", "web", None) is not None


async def test_what_is_about_to_be_sent_is_written_down_before() -> None:
    """The next daemon knows that a command may have reached QEMU; one that has ended is not sent any more."""
    journal = _Lines()
    table = OperationTable(journal)
    operation = table.begin("reset", "web", uid=0)
    await table.record(operation.id)
    assert not journal.later().get(operation.id).sent
    assert await table.sending(operation.id)
    assert (journal.later().get(operation.id).sent, table.get(operation.id).sent) == (True, True)
    assert journal.flushed == [True, False], "a crash of the machine ends QEMU, too"
    table.finish(operation.id)
    assert not await table.sending(operation.id)
    assert not await table.sending("unknown")


async def expect_unsent(table: OperationTable, operation_id: str) -> None:
    """It is too late to send it."""
    assert not await table.sending(operation_id)


async def test_an_operation_that_ends_while_that_is_written_is_not_sent() -> None:
    """A stop that overtakes it comes in between."""
    table = OperationTable(_Lines())
    for _ in range(20):  # trio runs the two in either order
        operation = table.begin("pause", "web", uid=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_unsent, table, operation.id)
            await trio.lowlevel.checkpoint()
            table.finish(operation.id, error=QsupError("overtaken by stop"))


async def test_an_end_is_foretold() -> None:
    """Before anybody hears how it ended, a later daemon would say the same; a full disk costs only that."""
    journal = _Lines()
    table = OperationTable(journal)
    well, ill, full = (table.begin("reset", name, uid=0) for name in ("well", "ill", "full"))
    await table.foretell(well.id, result={"a": 1})
    await table.foretell(ill.id, error=QsupError("no"))
    journal.full = True
    await table.foretell(full.id, result={})
    assert not any(operation.is_final for operation in table.all())
    later = journal.later()
    assert (later.get(well.id).state, later.get(well.id).result) == (OperationState.SUCCEEDED, {"a": 1})
    assert later.get(ill.id).state is OperationState.FAILED
    assert full.id not in journal.kept


def has_ended(journal: _Lines, operation: Operation) -> bool:
    """Whether a later daemon would know that it ended."""
    record = journal.kept.get(operation.id)
    return record is not None and record["state"] == "succeeded"


async def test_an_end_that_could_not_be_written_is_written_again(mock_clock: trio.testing.MockClock) -> None:
    """A disk that was full costs no end."""
    journal = _Lines()
    table = OperationTable(journal)
    one, two = table.begin("pause", "one", uid=0), table.begin("pause", "two", uid=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.run)
        journal.full = True
        table.finish(one.id)
        await trio.testing.wait_all_tasks_blocked()
        journal.full = False
        assert not has_ended(journal, one)
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert has_ended(journal, one)
        table.finish(two.id)
        await trio.testing.wait_all_tasks_blocked()
        assert has_ended(journal, two)
        nursery.cancel_scope.cancel()


async def test_ends_are_written_before_the_daemon_ends() -> None:
    """It was told to end in the moment in which an operation did."""
    journal = _Lines()
    table = OperationTable(journal)
    operation = table.begin("reset", "web", uid=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.run)
        await trio.testing.wait_all_tasks_blocked()
        table.finish(operation.id)
        nursery.cancel_scope.cancel()
    assert has_ended(journal, operation)


@pytest.mark.parametrize(
    "change",
    [{"state": "unheard-of"}, {"schema": 2}, {"target": 7}, {"error": {"code": "x"}}, {"created": 1e300}, {"extra": 1}],
    ids=str,
)
async def test_what_is_no_operation_is_left_out(change: dict[str, Any]) -> None:
    """A line that somebody tampered with, or a later qsupd wrote, costs itself and nobody else."""
    journal = _Lines()
    table = OperationTable(journal)
    good, bad = table.begin("start", "web", uid=0), table.begin("start", "db", uid=0)
    for operation in (good, bad):
        table.finish(operation.id, error=QsupError("no", hint="none", also=[1]))
        await table.record(operation.id)
    journal.kept[bad.id] |= change
    later = journal.later()
    assert [operation.id for operation in later.all()] == [good.id]
    error = later.get(good.id).error
    assert error is not None
    assert (error.message, error.hint, error.code, error.details) == ("no", "none", "internal", {"also": [1]})


async def test_details_of_an_error_cannot_be_mistaken_for_more() -> None:
    """Whatever their names are."""
    journal = _Lines()
    table = OperationTable(journal)
    operation = table.begin("start", "web", uid=0)
    table.finish(operation.id, error=QsupError("no"))
    await table.record(operation.id)
    journal.kept[operation.id]["error"]["details"] = {"message": "yes", "self": 1}
    error = journal.later().get(operation.id).error
    assert error is not None
    assert (error.message, error.details) == ("no", {"message": "yes", "self": 1})

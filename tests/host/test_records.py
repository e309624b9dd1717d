"""Tests of `qsup.host.records`: identities."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from qsup.errors import HostError, StateFileError
from qsup.host import codec
from qsup.host.records import IdentityRecord, IdentityStore, RunRecord, new_uuid
from qsup.plan.spec import Identity

WEB = IdentityRecord(
    name="web", uuid="0f5d0a3e-4d0c-4a5c-8f3f-2d8f6e1a7b11", machines={"q35": "pc-q35-7.2"}, uid=720007
)


def test_identity_is_kept(tmp_path: Path) -> None:
    """A VM has no identity at first; what is saved is what is loaded, also by a later daemon."""
    assert IdentityStore(tmp_path / "instances").load("web") is None
    IdentityStore(tmp_path / "instances").save(WEB)
    assert IdentityStore(tmp_path / "instances").load("web") == WEB


def test_identity_of_another_vm_is_refused(tmp_path: Path) -> None:
    """A copied identity file would give two VMs one UUID, and is refused."""
    store = IdentityStore(tmp_path)
    store.save(WEB)
    store.path("web").rename(store.path("mail"))
    with pytest.raises(StateFileError, match="is the identity of 'web'"):
        store.load("mail")


def test_unreadable_identity_is_not_replaced(tmp_path: Path) -> None:
    """A damaged identity is an error, not a reason for a new one, and others' uids are still known."""
    store = IdentityStore(tmp_path)
    store.save(WEB)
    store.path("mail").write_text("{")
    with pytest.raises(StateFileError, match=r"mail\.json is not a valid record"):
        store.load("mail")
    assert list(store.uids()) == [720007]
    assert store.path("mail").read_text() == "{"


@pytest.mark.parametrize(
    "changes",
    [{"pid": 0}, {"pid": -1}, {"pid": 1 << 70}, {"start_time": -1}, {"started": -1.0}, {"started": 1e300}],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    """A record with a pid that no process has, or a time that no clock shows, is not believed."""
    good = RunRecord(
        name="web",
        uuid=WEB.uuid,
        boot_id="b",
        uid=1,
        unit_digest="",
        argv=(),
        machine="q35",
        started=1.0,
        uptime=1.0,
        pid=1,
    )
    assert codec.decode(RunRecord, codec.encode(good)) == good
    with pytest.raises(ValueError, match=next(iter(changes))):
        codec.decode(RunRecord, codec.encode(good) | changes)


def test_uids_of_all_vms_are_known(tmp_path: Path) -> None:
    """Uids given once stay taken, also those of VMs without a unit; VMs without a uid have none to say."""
    store = IdentityStore(tmp_path)
    assert list(store.uids()) == []
    store.save(WEB)
    store.save(IdentityRecord(name="web@blue", uuid=new_uuid()))
    store.save(IdentityRecord(name="mail", uuid=new_uuid(), uid=720001))
    assert sorted(store.uids()) == [720001, 720007]


def test_machine_type_is_resolved_once() -> None:
    """The versioned type of an alias stays what it was first; another alias gets its own."""
    later = WEB.with_machine("q35", "pc-q35-9.0").with_machine("pc", "pc-i440fx-9.0")
    assert later.machines == {"q35": "pc-q35-7.2", "pc": "pc-i440fx-9.0"}
    assert later.identity == Identity(name="web", uuid=WEB.uuid, machines=later.machines)


def test_new_uuids_are_random() -> None:
    """UUIDs are of version 4 and differ."""
    first, second = new_uuid(), new_uuid()
    assert first != second
    assert uuid.UUID(first).version == 4


def test_a_uid_is_given_once_even_before_it_is_saved(tmp_path: Path) -> None:
    """Two VMs that start for the first time at once get different uids, and one that has a uid on disk keeps it."""
    store = IdentityStore(tmp_path)
    store.save(IdentityRecord(name="old", uuid=new_uuid(), uid=720_000))
    given = [store.give_uid("the same seed", within=range(720_000, 720_003)) for _ in range(2)]
    assert set(given) == {720_001, 720_002}
    with pytest.raises(HostError, match="no uid is left"):
        store.give_uid("the same seed", within=range(720_000, 720_003))

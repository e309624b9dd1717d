"""The verbs that change a VM: what they ask for, and what they show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve

from qsup.ctl.verbs.operations import subject
from qsup.ctl.verbs.set import describe
from qsup.errors import ChangeError
from tests.api.calling import Daemon
from tests.api.fake import FakeBackend
from tests.ctl.golden_text import check_golden
from tests.ctl.running import Ctl
from tests.ctl.test_render import EVIL

KEYS: dict[str, dict[str, Any]] = {
    "cpu.vcpus": {"applied": "live", "old": 1, "new": 4},
    "disk.data": {"applied": "live", "old": None, "new": {"id": "data", "path": "a.img", "serial": "", "discard": ""}},
    "service.restart": {"applied": "daemon", "old": "no", "new": "always"},
    "machine.rtc": {"applied": "start", "old": "utc", "new": "localtime", "why": "it cannot be changed while it runs"},
    "unit.description": {"applied": "refused", "old": "", "new": EVIL, "why": EVIL},
    "memory.size": {"applied": "reset", "old": "1G", "new": "2G"},
}


def asked(backend: FakeBackend) -> dict[str, object]:
    """The arguments of the newest operation."""
    return dict(backend.operations()[0].arguments)


async def test_set_asks_for_all_keys_at_once(served: Daemon, ctl: Ctl) -> None:
    """Texts become values at the daemon, and who wants it to last says so."""
    assert await ctl.ok("set", "web", "vcpus=4", "append=a=b", "disk.data.cache=none") == ""
    changes = {"cpu": {"vcpus": 4}, "machine": {"append": "a=b"}, "disk": [{"id": "data", "cache": "none"}]}
    expected = {"changes": changes, "persist": None, "dry_run": False, "next_start": False}
    assert asked(served.backend) == expected
    for option, changed in {
        "--persist": {"persist": True},
        "--runtime": {"persist": False},
        "--dry-run": {"dry_run": True},
        "--next-start": {"next_start": True, "persist": True},
    }.items():
        await ctl.ok("set", "web", option, "vcpus=4")
        assert asked(served.backend) == {**expected, "changes": {"cpu": {"vcpus": 4}}, **changed}


async def test_every_key_of_an_entry_can_be_said(served: Daemon, ctl: Ctl) -> None:
    """Those of the tables in it, and texts that look like numbers; what is said twice is refused."""
    await ctl.ok(
        "attach", "web", "disk", "id=data", "path=a.img", 'serial="12"', "throttle.iops=100", "throttle.bps=1M"
    )
    disk = {"id": "data", "path": "a.img", "serial": "12", "throttle": {"iops": 100, "bps": "1M"}}
    assert asked(served.backend)["changes"] == {"disk": [disk]}
    for twice in (("id=a", "id=b"), ("throttle.iops=1", "throttle.iops=2"), ("throttle=1", "throttle.iops=2")):
        result = await ctl("attach", "web", "disk", *twice)
        assert (result.code, "is there twice" in result.err) == (2, True)


async def test_attach_and_detach_say_whether_it_is_to_last(served: Daemon, ctl: Ctl) -> None:
    """Without an option the daemon decides."""
    for options, persist in (((), None), (("--persist",), True), (("--runtime",), False)):
        await ctl.ok("attach", "web", "disk", "id=data", "path=a.img", *options)
        assert asked(served.backend) == {"changes": {"disk": [{"id": "data", "path": "a.img"}]}, "persist": persist}
        await ctl.ok("detach", "web", "disk.root", "--force", *options)
        assert asked(served.backend)["persist"] is persist


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("vcpus",), "'vcpus' is no KEY=VALUE"),
        (("=4",), "'=4' is no KEY=VALUE"),
        (("vcpus=4", "vcpus=5"), "'vcpus' is there twice"),
        (("vcpus=4", "--persist", "--runtime"), "--persist and --runtime exclude each other"),
    ],
    ids=str,
)
async def test_wrong_usage_asks_for_nothing(served: Daemon, ctl: Ctl, arguments: tuple[str, ...], words: str) -> None:
    """It ends with 2."""
    result = await ctl("set", "web", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert served.backend.operations() == ()


async def test_the_daemon_knows_the_keys(served: Daemon, ctl: Ctl) -> None:
    """Its words are shown, with its suggestion."""
    result = await ctl("set", "web", "vcpu=4")
    assert (result.code, result.out) == (1, "")
    assert "there is no key 'vcpu'; did you mean 'vcpus'?" in result.err
    result = await ctl("set", "web", "type=q35")
    assert "type may be machine.type" in result.err


def test_what_becomes_of_keys() -> None:
    """A line for each, whatever strange text is in it."""
    check_golden("set", describe(KEYS))


async def test_a_refusal_shows_every_key(served: Daemon, ctl: Ctl) -> None:
    """Before it says why."""
    served.backend.held.add("web")
    assert await ctl.ok("set", "web", "vcpus=4", "--no-block") == ""
    operation = served.backend.operations()[0]
    error = ChangeError("no; never", keys={"cpu.vcpus": {"applied": "refused", "old": 1, "new": 4, "why": "no"}})
    served.backend.finish(operation.id, error)
    shown = json.loads(await ctl.ok("operations", operation.id, "-o", "jsonl"))
    assert shown["error"]["keys"]["cpu.vcpus"]["applied"] == "refused"
    assert shown["arguments"]["changes"] == {"cpu": {"vcpus": 4}}
    assert "set   cpu.vcpus  failed" in await ctl.ok("operations")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ""),
        ({"entry": "disk.data"}, "disk.data"),
        (
            {"changes": {"disk": [{"id": "a"}, {"id": "b"}], "cpu": {"vcpus": 1, "model": ""}}},
            "disk.a, disk.b, cpu.vcpus and 1 more",
        ),
        ({"changes": {"disk": "nonsense", "cpu": None}}, "disk, cpu"),
    ],
    ids=str,
)
def test_what_an_operation_is_about(arguments: dict[str, object], words: str) -> None:
    """In as few words as say it."""
    assert subject(arguments) == words


async def test_status_tells_of_what_is_leaving(served: Daemon, ctl: Ctl) -> None:
    """And of the room that is left."""
    view = served.backend.views["web"]
    served.backend.views["web"] = evolve(view, moving={"disk.root": "leaving"})
    shown = await ctl.ok("status", "web")
    assert "virtio), leaving: the guest has yet to let it go" in shown
    assert "7 of 8 hotplug slots free" in shown

"""The verbs that change a VM: what they ask for, and what they show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve

from qsup.ctl.client import Client
from qsup.ctl.connection import Address, Deadline
from qsup.ctl.failures import report
from qsup.ctl.verbs.operations import subject
from qsup.ctl.verbs.power import wait_operation
from qsup.ctl.verbs.set import describe
from qsup.errors import ChangeError, ClientError
from tests.api.calling import Daemon
from tests.api.fake import FakeBackend
from tests.ctl.golden_text import check_golden
from tests.ctl.running import Ctl
from tests.ctl.test_render import EVIL

KEYS: dict[str, dict[str, Any]] = {
    "cpu.vcpus": {"applied": "live", "old": 1, "new": 4, "vcpus": 4, "online": 3},
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
    """Those of the tables in it, too, each as its key takes it; what is said twice, or means nothing, is refused."""
    said = ("path=a.img", "serial=0123", "throttle.iops=100", "throttle.bps=1M", 'backing=[{"path": "b.img"}]')
    await ctl.ok("attach", "web", "disk", "id=data", "read-only=true", *said)
    assert asked(served.backend)["changes"] == {
        "disk": [
            {
                "id": "data",
                "path": "a.img",
                "read-only": True,
                "serial": "0123",
                "throttle": {"iops": 100, "bps": "1M"},
                "backing": [{"path": "b.img"}],
            }
        ]
    }
    await ctl.ok("attach", "web", "nic", "id=dmz", "forward=8080:80,2222:22")
    assert asked(served.backend)["changes"] == {"nic": [{"id": "dmz", "forward": ["8080:80", "2222:22"]}]}
    await ctl.ok("attach", "web", "nic", "id=dmz")
    assert asked(served.backend)["changes"] == {"nic": [{"id": "dmz"}]}
    for twice in (("id=a", "id=b"), ("id=a", "throttle.iops=1", "throttle.iops=2")):
        result = await ctl("attach", "web", "disk", *twice)
        assert (result.code, "is there twice" in result.err) == (2, True)
    for wrong, words in {
        "cash=none": "did you mean 'cache'?",
        "throttle.iops=many": "disk.data.throttle.iops: expected an integer",
        "backing=b.img": "disk.data.backing: expected an array of tables",
    }.items():
        result = await ctl("attach", "web", "disk", "id=data", wrong)
        assert (result.code, words in result.err) == (1, True), result


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("disk", "path=/srv/img/data-2.qcow2"), "such as id=data-2"),
        (("disk", "path=ä.img"), "such as id=data"),
        (("nic", "bridge=br0"), "such as id=dmz"),
        (("device", "type=rng", "id="), "such as id=rng"),
    ],
    ids=str,
)
async def test_what_is_attached_needs_a_name(served: Daemon, ctl: Ctl, words: tuple[str, ...], hint: str) -> None:
    """Which is said, with one that would do."""
    result = await ctl("attach", "web", *words)
    assert (result.code, f"the {words[0]} needs an id" in result.err, hint in result.err) == (2, True, True)
    assert served.backend.operations() == ()


def test_what_is_wrong_with_a_request_is_told_with_its_vm(capsys: pytest.CaptureFixture[str]) -> None:
    """A line of a file says by itself whose it is."""
    request = {"file": "the request", "line": 0, "key": "disk.a.bus", "message": "must be virtio"}
    file = {"file": "/units/web.toml", "line": 3, "key": "memory.sise", "message": "unknown key"}
    report(ChangeError("both", instance="web", diagnostics=[request, file]))
    assert capsys.readouterr().err.splitlines() == [
        "qsupctl: web: the request: disk.a.bus: must be virtio",
        "qsupctl: /units/web.toml:3: memory.sise: unknown key",
    ]


async def test_how_long_a_guest_may_take(served: Daemon, ctl: Ctl) -> None:
    """It reaches the daemon as it was meant, be it short or long; what is too long is told as people write times."""
    for text, value in {"1h": 3600.0, "50ms": 0.05, "0.00001s": 0.00001}.items():
        await ctl.ok("detach", "web", "disk.root", "--force-after", text)
        assert asked(served.backend)["force_after"] == value
    result = await ctl("detach", "web", "disk.root", "--force-after", "999h")
    assert result.code == 2
    assert "--force-after takes at most 1h, not 1 month 1w" in result.err


async def test_what_comes_and_goes_says_whether_it_is_to_last(served: Daemon, ctl: Ctl) -> None:
    """Without an option the daemon decides."""
    for options, persist in (((), None), (("--persist",), True), (("--runtime",), False)):
        await ctl.ok("attach", "web", "disk", "id=data", "path=a.img", *options)
        assert asked(served.backend) == {"changes": {"disk": [{"id": "data", "path": "a.img"}]}, "persist": persist}
        await ctl.ok("detach", "web", "disk.root", "--force", *options)
        assert asked(served.backend)["persist"] is persist
        await ctl.ok("insert", "web", "cd", "a.iso", *options)
        assert asked(served.backend)["persist"] is persist
        await ctl.ok("eject", "web", "cd", *options)
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


async def test_who_no_longer_waits_is_told_how_it_ends(served: Daemon, ctl: Ctl) -> None:
    """Where it can be ended."""
    served.backend.held.add("web")
    result = await ctl("set", "web", "memory=1G", "--timeout", "0.1s")
    (operation,) = served.backend.operations()
    goes_on = f"  hint: it goes on; qsupctl operations {operation.id} shows how far it is"
    assert result.err.endswith(f"{goes_on}\n")
    served.backend.last(operation.id, "gave back nothing of 1G")
    shown = json.loads(await ctl.ok("operations", operation.id, "-o", "jsonl"))
    with pytest.raises(ClientError) as caught:
        wait_operation(Client(Address("", "")), shown, Deadline(0.0))
    assert caught.value.hint == f"{goes_on.removeprefix('  hint: ')}, and with --cancel ends it"


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

"""Power verbs and waiting: operations, side by side, to their end."""

from __future__ import annotations

import json
import shlex
import time

import pytest
import trio
from attrs import evolve

from qsup.ctl.verbs.wait import UP_WORDS
from qsup.ctl.words import DOWN_STATES, STATES
from qsup.errors import StartError
from qsup.instance.cause import Cause, CauseKind
from qsup.instance.state import Level, State
from tests.api.calling import Daemon
from tests.ctl.running import Ctl, Result, in_thread, terminal
from tests.waiting import wait_until


class Call:
    """A call that runs beside the test."""

    def __init__(self) -> None:
        self.result: Result | None = None

    async def run(self, ctl: Ctl, *arguments: str) -> None:
        """Make it."""
        self.result = await ctl(*arguments)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.result is not None


async def running_operations(served: Daemon, count: int) -> list[str]:
    """Wait for that many held operations; their ids, oldest first."""
    await wait_until(lambda: len(served.backend.operations()) == count, f"{count} operations")
    return [operation.id for operation in reversed(served.backend.operations())]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        *[("stop", State.DEAD), ("kill", State.DEAD), ("pause", State.PAUSED)],
        *((verb, State.RUNNING) for verb in ("start", "restart", "reset", "powerdown", "nmi")),
    ],
)
async def test_a_verb_is_silent_when_it_succeeds(served: Daemon, ctl: Ctl, verb: str, state: State) -> None:
    """Every power verb does what it says and prints nothing."""
    assert await ctl.ok(verb, "web") == ""
    assert served.backend.views["web"].state is state
    assert [operation.kind for operation in served.backend.operations()] == [verb]


async def test_reset_failed_is_about_those_that_have_failed(served: Daemon, ctl: Ctl) -> None:
    """Without a name, or with ``--all``, those that have failed are asked for; a name is taken as it is."""
    views = served.backend.views
    for arguments in ((), ("--all",)):
        served.backend.set_state("web", State.START_LIMIT_HIT)
        assert await ctl.ok("reset-failed", *arguments) == ""
        assert (views["web"].state, views["db"].state) == (State.DEAD, State.RUNNING)
    asked = [(operation.kind, operation.target) for operation in served.backend.operations()]
    assert asked == [("reset-failed", "web")] * 2
    assert await ctl.ok("reset-failed", "web") == ""
    served.backend.set_state("web", State.QUARANTINED)
    assert "a record of it cannot be read" in (await ctl("reset-failed", "web")).err


async def test_it_waits_for_all_of_them(served: Daemon, ctl: Ctl) -> None:
    """Operations of several VMs run side by side, and the command ends with the last of them."""
    served.backend.held |= {"web", "db"}
    call = Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, ctl, "kill", "--all")
        first, second = await running_operations(served, 2)
        served.backend.finish(second)
        assert not call.done
        served.backend.finish(first)
    assert call.result == Result(code=0, out="", err="")


async def test_a_terminal_is_told_what_takes_long(served: Daemon) -> None:
    """Whoever waits there sees how far it is, and silence otherwise means that it is soon over."""
    served.backend.held.add("web")
    with terminal("kill", "web", "--socket", served.served.path) as attached:
        (operation,) = await running_operations(served, 1)
        words = served.backend.operations()[0].progress.encode()
        await in_thread(attached.read_until, b"web: " + words)
        served.backend.finish(operation)
        assert await in_thread(attached.end) == 0
        assert attached.seen.count(words) == 1


async def test_no_block_leaves_at_once(served: Daemon, ctl: Ctl) -> None:
    """``--no-block`` returns with the operation under way."""
    served.backend.held.add("web")
    document = json.loads(await ctl.ok("stop", "web", "--no-block", "-o", "json"))
    assert [operation["state"] for operation in document["operations"]] == ["running"]


async def test_a_failure_is_told_in_the_daemons_words(served: Daemon, ctl: Ctl) -> None:
    """An operation that fails gives its error and hint, the others go on, and the code is 1."""
    served.backend.held |= {"web", "db"}
    call = Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, ctl, "restart", "web", "db")
        web, db = await running_operations(served, 2)
        served.backend.finish(web, StartError("could not open disk image: Permission denied", hint="chmod it"))
        served.backend.finish(db)
    assert call.result == Result(
        code=1, out="", err="qsupctl: web: could not open disk image: Permission denied\n  hint: chmod it\n"
    )


async def test_one_refusal_keeps_no_other_from_its_turn(served: Daemon, ctl: Ctl) -> None:
    """A name that does not exist and a verb that is not allowed are told; the rest is done."""
    served.backend.set_state("web", State.DEAD, pid=None)
    result = await ctl("pause", "nope", "web", "db")
    assert result.code == 4
    assert "qsupctl: nope: there is no instance 'nope'\n" in result.err
    assert "qsupctl: web: " in result.err
    assert served.backend.views["db"].state is State.PAUSED


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
async def test_vms_whose_order_counts_are_named_in_one_request(served: Daemon, ctl: Ctl, verb: str) -> None:
    """Also those that a glob or ``--all`` means; one by itself is asked for as ever."""
    requests = served.served.requests
    for arguments in (("db", "web"), ("[dw]*",), ("--all",))[: 2 if verb == "stop" else 3]:
        requests.clear()
        assert await ctl.ok(verb, *arguments) == ""
        assert [pattern for method, pattern, _ in requests if method == "POST"] == [f"/v1/{verb}"]
    requests.clear()
    assert await ctl.ok(verb, "w*") == ""
    assert [pattern for method, pattern, _ in requests if method == "POST"] == [f"/v1/instances/{{instance}}/{verb}"]


async def test_what_is_refused_of_several_is_told_by_name(served: Daemon, ctl: Ctl) -> None:
    """The others are begun, and the exit code is that of the worst; the operations are printed in order."""
    served.backend.held.add("web")
    result = await ctl("stop", "web", "nope", "db", "--no-block", "-o", "json", "--timeout", "90s")
    assert (result.code, result.err) == (4, "qsupctl: nope: there is no instance 'nope'\n")
    operations = json.loads(result.out)["operations"]
    assert [(each["target"], each["state"]) for each in operations] == [("web", "running"), ("db", "succeeded")]
    assert set(served.backend.timeouts.values()) == {90.0}
    result = await ctl("start", "web", "nope", "db", "--wait", "--timeout", "50ms")
    assert (result.code, result.err) == (
        4,
        "qsupctl: web: another operation holds it\nqsupctl: nope: there is no instance 'nope'\n",
    )


async def test_what_excludes_each_other_is_told_once(served: Daemon, ctl: Ctl) -> None:
    """Nothing is begun, and it is an ordinary failure."""
    served.backend.excluded = {"db", "web"}
    result = await ctl("restart", "web", "db")
    assert result == Result(code=1, out="", err="qsupctl: they exclude each other\n")
    assert served.backend.operations() == ()


async def test_the_timeout_of_a_stop_is_the_guests(served: Daemon, ctl: Ctl) -> None:
    """``stop --timeout`` goes to the daemon; for other verbs it bounds our own wait, and the operation goes on."""
    await ctl.ok("stop", "web", "--timeout", "1.5min")
    assert list(served.backend.timeouts.values()) == [90.0]
    served.backend.held.add("db")
    result = await ctl("reset", "db", "--timeout", "50ms")
    assert result.code == 1
    assert "qsupctl: db: the reset is still under way" in result.err
    operation = served.backend.operations()[0]
    assert (served.backend.timeouts[operation.id], operation.is_final) == (None, False)


async def test_stopping_all_is_one_request_and_names_what_was_killed(served: Daemon, ctl: Ctl) -> None:
    """The daemon knows the order; ``--timeout`` is for all of it."""
    served.backend.deaf.add("db")
    assert await ctl("stop", "--all", "--timeout", "2min") == Result(
        code=1, out="", err="qsupctl: db: killed: it was not down in time\n"
    )
    (operation,) = served.backend.operations()
    assert (operation.kind, served.backend.timeouts[operation.id]) == ("stop-all", 120.0)
    served.backend.deaf.clear()
    document = json.loads(await ctl.ok("stop", "--all", "-o", "json"))
    assert document["operations"][0]["result"] == {"changed": True, "stopped": ["db", "web"], "killed": []}


@pytest.mark.parametrize(
    "arguments",
    [
        "stop",
        "stop --all web",
        "stop web --soon",
        "explode",
        "stop web ''",
        "status ''",
        "console ''",
        "logs ''",
        "events ''",
        "events --since -1",
        "events --type instance-sate",
        "events --type 'instance-*,x*'",
        "events --type ''",
        "list --state runing",
        "list --state=",
        "stop web --wait --no-block",
    ],
)
async def test_a_wrong_command_line_sends_nothing(served: Daemon, ctl: Ctl, arguments: str) -> None:
    """No name or an empty one, an unknown verb or option, a wrong value, what excludes itself: code 2, no request."""
    result = await ctl(*shlex.split(arguments))
    assert (result.code, result.out) == (2, "")
    assert "  hint: " in result.err
    assert served.served.requests == []


# wait


async def reads(served: Daemon, count: int) -> None:
    """Wait until the VM was read that many times."""
    read = ("GET", "/v1/instances/{instance}", 200)
    await wait_until(lambda: served.served.requests.count(read) >= count, f"{count} reads")


async def test_wait_ends_at_once_when_it_is_so(ctl: Ctl) -> None:
    """What is reached already is not waited for."""
    assert await ctl.ok("wait", "web", "db") == ""
    assert await ctl.ok("wait", "web", "--for", "running") == ""
    assert json.loads(await ctl.ok("wait", "web", "--for=agent", "-o", "jsonl"))["name"] == "web"


@pytest.mark.parametrize(
    ("wanted", "states"),
    [
        ("ready", [State.SPAWNING, State.WAITING_READY, State.RUNNING]),
        ("paused", [State.PAUSED]),
        ("inactive", [State.STOPPING_GUEST, State.DEAD]),
        ("crashed", [State.CRASHED]),
    ],
)
async def test_wait_sees_the_change(served: Daemon, ctl: Ctl, wanted: str, states: list[State]) -> None:
    """A wait ends with the event that brings what is waited for, not before, and without polling."""
    served.backend.set_state("web", State.SPAWNING)
    call = Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, ctl, "wait", "web", "--for", wanted)
        for number, state in enumerate(states, 1):
            await reads(served, number)
            assert not call.done
            served.backend.set_state("web", state)
    assert call.result == Result(code=0, out="", err="")


async def test_wait_for_the_agent_sees_it_connect(served: Daemon, ctl: Ctl) -> None:
    """A change that is no change of state is seen as well."""
    view = served.backend.views["web"]
    served.backend.views["web"] = evolve(view, agent_connected=False)
    call = Call()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run, ctl, "wait", "web", "--for", "agent")
        await wait_until(lambda: served.served.requests, "the first read")
        served.backend.views["web"] = view
        served.backend.ring.publish("instance-changed", "web", {"agent_connected": True})
    assert call.result == Result(code=0, out="", err="")


async def test_a_failed_vm_ends_the_wait(served: Daemon, ctl: Ctl) -> None:
    """What has failed does not become ready by itself: the wait ends with the cause."""
    cause = Cause(kind=CauseKind.START_FAILED, detail="no such image")
    served.backend.set_state("web", State.START_FAILED, cause=cause, pid=None)
    result = await ctl("wait", "web")
    assert (result.code, result.err) == (1, "qsupctl: web: it failed: no such image\n")
    assert await ctl.ok("wait", "web", "--for", "failed") == ""


async def test_a_wait_has_an_end(served: Daemon, ctl: Ctl) -> None:
    """After its time a wait fails and says where the VM stands."""
    began = time.monotonic()
    result = await ctl("wait", "web", "--for", "paused", "--timeout", "100ms")
    assert 0.1 <= time.monotonic() - began < 5
    assert (result.code, result.err) == (
        1,
        "qsupctl: web: the time is over; it is active (running)\n  hint: qsupctl status web shows more\n",
    )


def test_everything_that_can_be_waited_for_has_a_word() -> None:
    """The words are the levels and substates of the state table, and two more."""
    known = {level.value for level in Level} | {state.substate for state in State}
    assert set(STATES) == known
    assert {*UP_WORDS, *DOWN_STATES} == known | {"ready", "agent"}
    assert set(DOWN_STATES) == {"inactive", "failed"} | {
        state.substate for state in State if state.level in (Level.INACTIVE, Level.FAILED)
    }


async def test_a_start_can_be_forced(served: Daemon, ctl: Ctl) -> None:
    """Of one VM and of several; no other verb can."""
    assert await ctl.ok("start", "--force", "web") == ""
    assert await ctl.ok("start", "--force", "web", "db") == ""
    assert await ctl.ok("start", "web") == ""
    backend = served.backend
    told = [dict(backend.arguments[operation.id]) for operation in reversed(backend.operations())]
    assert told == [{"force": True}] * 3 + [{}]
    assert (await ctl("stop", "--force", "web")).code == 2

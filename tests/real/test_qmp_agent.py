"""The guest agent's client before a real agent in a real guest, through a real virtio-serial port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from qsup.errors import AgentCommandError, AgentError, AgentProtocolError, AgentTimeout
from qsup.qmp import guest
from qsup.qmp.agent import GuestAgent
from tests.bare import BareMachine, bare_machine, linux_options
from tests.guests import Emulator

TIMEOUT = 30.0
SHORT = 0.5


@contextlib.contextmanager
def machine_with_agent(directory: Path, qemu: Emulator) -> Iterator[tuple[BareMachine, GuestAgent]]:
    """The Linux guest at its prompt, and the client of its agent."""
    path = directory / "agent.sock"
    channel = ("-chardev", f"socket,id=agent,path={path},server=on,wait=off", "-device", "virtio-serial-pci")
    port = ("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0,id=port")
    with bare_machine(directory, *linux_options(), *channel, *port, emulator=qemu) as machine:
        agent = GuestAgent(path, name="web")
        try:
            machine.console.read_until(b"guest ready")
            yield machine, agent
        finally:
            agent.disconnect_nowait()
            path.unlink(missing_ok=True)


async def typed(machine: BareMachine, line: str, expected: str) -> None:
    """Type a line at the guest's prompt and wait for an answer."""

    def type_it() -> None:
        machine.console.write(line.encode() + b"\n")
        machine.console.read_until(expected.encode())

    await trio.to_thread.run_sync(type_it)


async def answering(agent: GuestAgent) -> None:
    """Wait until the agent answers; trying costs it nothing."""
    with trio.fail_after(TIMEOUT):
        while True:
            try:
                return await guest.ping(agent, timeout=SHORT)
            except AgentError:
                continue


@pytest.mark.slow
async def test_a_real_agent_is_asked_and_survives_everything(root_dir: Path, qemu: Emulator) -> None:
    """One guest's life: questions, programs, an agent that hangs, one that dies, a reset, and the end."""
    with machine_with_agent(root_dir, qemu) as (machine, agent):
        await answering(agent)
        await _asked(agent)
        await _hanging(machine, agent)
        await _dying(machine, agent)
        await _reset(machine, agent)
        await guest.shutdown(agent, timeout=TIMEOUT)
        await trio.to_thread.run_sync(machine.monitor.event, "SHUTDOWN")


async def _asked(agent: GuestAgent) -> None:
    info = await guest.info(agent, timeout=TIMEOUT)
    assert {"guest-exec", "guest-shutdown"} <= info.commands
    interfaces = {interface.name: interface for interface in await guest.network_get_interfaces(agent, timeout=TIMEOUT)}
    assert guest.GuestAddress(kind="ipv4", address="127.0.0.1", prefix=8) in interfaces["lo"].addresses
    result = await guest.run(agent, "/bin/sh", ["-c", "cat; echo oops >&2; exit 3"], input=b"hello", timeout=TIMEOUT)
    assert (result.exit_code, result.stdout, result.stderr, result.truncated) == (3, b"hello", b"oops\n", False)
    killed = await guest.run(agent, "/bin/sh", ["-c", "kill -9 $$"], timeout=TIMEOUT)
    assert (killed.exit_code, killed.signal) == (None, 9)
    with pytest.raises(AgentCommandError, match="Failed to execute"):
        await guest.run(agent, "/no/such/program", timeout=TIMEOUT)
    # more than an answer may hold, then less than one holds but more than is kept
    script = "head -c {} /dev/zero"
    with pytest.raises(AgentProtocolError, match="more than"):
        await guest.run(agent, "/bin/sh", ["-c", script.format(3_300_000)], timeout=TIMEOUT)
    long = await guest.run(agent, "/bin/sh", ["-c", script.format(1_100_000)], timeout=TIMEOUT)
    assert (len(long.stdout), long.truncated) == (guest.MAX_OUTPUT, True)
    with pytest.raises(AgentTimeout, match="still ran in the guest"):
        await guest.run(agent, "/bin/sleep", ["100"], timeout=SHORT)
    await guest.ping(agent, timeout=TIMEOUT)


async def _hanging(machine: BareMachine, agent: GuestAgent) -> None:
    await typed(machine, "kill -STOP $(pidof qemu-ga); echo stop''ped", "stopped")
    for _ in range(3):
        with pytest.raises(AgentTimeout):
            await guest.ping(agent, timeout=SHORT)
    await typed(machine, "kill -CONT $(pidof qemu-ga); echo con''tinued", "continued")
    # the late answers to those three are none of this one's
    assert "guest-ping" in (await guest.info(agent, timeout=TIMEOUT)).commands


async def _dying(machine: BareMachine, agent: GuestAgent) -> None:
    await typed(machine, "killall -STOP qemu-ga; echo stop''ped", "stopped")
    with pytest.raises(AgentTimeout):
        await agent.execute("guest-info", timeout=SHORT)
    # init starts another
    await typed(machine, "killall -KILL qemu-ga; echo kill''ed", "killed")
    await answering(agent)


async def _reset(machine: BareMachine, agent: GuestAgent) -> None:
    async with trio.open_nursery() as callers:

        async def ask() -> None:
            with pytest.raises(AgentError):
                await guest.run(agent, "/bin/sleep", ["100"], timeout=TIMEOUT)

        callers.start_soon(ask)
        await trio.to_thread.run_sync(machine.monitor.command, "system_reset")
        agent.disconnect_nowait()
    await trio.to_thread.run_sync(machine.console.read_until, b"guest ready")
    await answering(agent)

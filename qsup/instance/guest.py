"""The way into the guest: its agent, over all the lives of a VM.

Decides: which connection belongs to the present life, and the JSON shape of what the guest answers.
Must not: hold up anything else; the agent has a lock and deadlines of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from qsup.errors import AgentUnavailable
from qsup.instance.life import Life
from qsup.qmp import guest
from qsup.qmp.agent import GuestAgent

#: The virtio-serial port's id and its character device's label (`qsup.plan.devices.agent_part`).
AGENT_PORT = "agent"


class GuestChannel:
    """The agent of one VM.

    Args:
        name: the VM's, for errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._agent: GuestAgent | None = None

    def attach(self, life: Life) -> None:
        """A life has begun or was found again; nothing is connected before the first call."""
        if life.summary.has_agent and self._agent is None:
            self._agent = GuestAgent(life.directory.path / "agent", name=self._name)

    def detach(self) -> None:
        """The life is over."""
        self.forget()
        self._agent = None

    def forget(self) -> None:
        """The guest was reset: its agent knows nothing of what was asked before."""
        if self._agent is not None:
            self._agent.disconnect_nowait()

    def _present(self) -> GuestAgent:
        if self._agent is None:
            raise AgentUnavailable(
                "it has no guest agent channel", instance=self._name, hint="set [agent] enabled = true in its unit"
            )
        return self._agent

    async def ping(self, seconds: float) -> None:
        """Whether the agent answers; `AgentError` when not."""
        await guest.ping(self._present(), timeout=seconds)

    async def shutdown(self, seconds: float) -> None:
        """Have the guest shut itself down; `AgentError` when it refuses or nobody listens."""
        await guest.shutdown(self._present(), timeout=seconds)

    async def vcpus(self, seconds: float) -> tuple[guest.GuestVcpu, ...]:
        """The processors that the guest knows, by its own numbers."""
        return await guest.get_vcpus(self._present(), timeout=seconds)

    async def set_vcpus(self, numbers: Sequence[int], online: bool, seconds: float) -> int:
        """Put processors online or offline; how many were."""
        return await guest.set_vcpus(self._present(), numbers, online, timeout=seconds)

    async def info(self, seconds: float) -> Mapping[str, Any]:
        """The agent's version and the commands it takes."""
        found = await guest.info(self._present(), timeout=seconds)
        return {
            "version": found.version,
            "supported_commands": [{"name": name, "enabled": True} for name in sorted(found.commands)],
        }

    async def addresses(self, seconds: float) -> list[dict[str, Any]]:
        """The guest's interfaces, in the words of ``guest-network-get-interfaces``."""
        return [
            {
                "name": interface.name,
                "hardware-address": interface.mac,
                "ip-addresses": [
                    {"ip-address-type": a.kind, "ip-address": a.address, "prefix": a.prefix}
                    for a in interface.addresses
                ],
            }
            for interface in await guest.network_get_interfaces(self._present(), timeout=seconds)
        ]

    async def execute(self, arguments: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        """Run a program in the guest; see `qsup.api.wire.AgentRequest` and ``ExecResult`` there."""
        result = await guest.run(
            self._present(),
            arguments["path"],
            arguments.get("arguments", ()),
            timeout=seconds,
            input=str(arguments.get("input", "")).encode(),
        )
        return {
            "exit_code": result.exit_code,
            "signal": result.signal,
            **_text("stdout", result.stdout),
            **_text("stderr", result.stderr),
            "truncated": result.truncated,
        }


def _text(name: str, data: bytes) -> Mapping[str, str]:
    """Output as text, and as it is beside that where no text says it."""
    text = data.decode(errors="replace")
    lossless = text.encode() == data
    return {name: text} if lossless else {name: text, f"{name}_base64": base64.b64encode(data).decode()}

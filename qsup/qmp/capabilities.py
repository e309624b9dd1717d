"""What a QEMU binary can do, asked of one that runs without a machine.

Decides: which facts are asked for, and how QEMU's answers are read.
Must not: run a binary or remember what it said (`qsup.instance.probe`), or compare versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qemu.qmp.error import ProtocolError

from qsup.errors import MonitorProtocolError
from qsup.plan.spec import Capabilities, MachineType
from qsup.qmp.connection import MAX_LARGE_REPLY, Monitor
from qsup.qmp.wire import elements, member

#: Raised whenever other facts are asked for, so that answers kept from before are asked for again.
REVISION: Final = 1

#: Fact of the schema -> (command, path of members, word): the word is a member or an enumeration's value at that path.
_SCHEMA_FACTS: Final[Mapping[str, tuple[str, tuple[str, ...], str]]] = {
    "screendump-format": ("screendump", (), "format"),
    "netdev-user": ("netdev_add", ("type",), "user"),
    "netdev-tap": ("netdev_add", ("type",), "tap"),
    "aio-native": ("blockdev-add", ("driver=file", "aio"), "native"),
    "aio-io_uring": ("blockdev-add", ("driver=file", "aio"), "io_uring"),
}
#: Fact of a device type -> (type, property).
_PROPERTY_FACTS: Final = {"free-page-reporting": ("virtio-balloon-pci", "free-page-reporting")}


async def query_capabilities(monitor: Monitor, emulator: str, *, timeout: float) -> Capabilities:
    """Ask a QEMU that was started with ``-machine none``.

    Args:
        emulator: the binary's absolute path.
        timeout: seconds for each question.

    Raises:
        MonitorProtocolError: an answer is not what QAPI says it is.
        MonitorError: QEMU did not answer, or answered with an error.
    """
    try:
        return await _ask(monitor, emulator, timeout)
    except ProtocolError as error:
        raise MonitorProtocolError(f"{emulator} answered with {error.error_message}", instance=monitor.name) from error


async def _ask(monitor: Monitor, emulator: str, timeout: float) -> Capabilities:
    async def types(base: str) -> frozenset[str]:
        arguments = {"implements": base, "abstract": False}
        return _names(await monitor.execute("qom-list-types", arguments, timeout=timeout))

    devices = await types("device")
    target = await monitor.execute("query-target", timeout=timeout)
    machines = await monitor.execute("query-machines", timeout=timeout)
    commands = await monitor.execute("query-commands", timeout=timeout)
    options = await monitor.execute("query-command-line-options", timeout=timeout)
    schema = SchemaTree(await monitor.execute("query-qmp-schema", timeout=timeout, max_reply=MAX_LARGE_REPLY))
    facts = {name for name, place in _SCHEMA_FACTS.items() if schema.knows(*place)}
    for name, (device, wanted) in _PROPERTY_FACTS.items():
        if device in devices:
            properties = await monitor.execute("device-list-properties", {"typename": device}, timeout=timeout)
            facts |= {name} if wanted in _names(properties) else set()
    greeting = monitor.greeting
    package = f" ({greeting.package})" if greeting.package else ""
    return Capabilities(
        emulator=emulator,
        version=f"{greeting.major}.{greeting.minor}.{greeting.micro}{package}",
        architecture=member(target, "arch", str),
        machines=tuple(_machine(machine) for machine in elements(machines)),
        commands=_names(commands),
        devices=devices,
        objects=await types("user-creatable"),
        options={member(each, "option", str): _parameters(each) for each in elements(options)},
        schema_features=frozenset(facts),
        accelerators=frozenset(name.removesuffix("-accel") for name in await types("accel") if name != "accel"),
    )


def _names(value: object) -> frozenset[str]:
    return frozenset(member(each, "name", str) for each in elements(value))


def _parameters(option: object) -> tuple[str, ...]:
    return tuple(member(each, "name", str) for each in member(option, "parameters", list))


def _machine(value: object) -> MachineType:
    """One entry of ``query-machines`` (QAPI ``MachineInfo``)."""
    return MachineType(
        name=member(value, "name", str),
        alias=member(value, "alias", str, ""),
        cpu_max=member(value, "cpu-max", int),
        hotpluggable_cpus=member(value, "hotpluggable-cpus", bool),
        default_cpu_type=member(value, "default-cpu-type", str, ""),
        deprecated=member(value, "deprecated", bool),
    )


class SchemaTree:
    """The QAPI schema as QEMU describes it (``query-qmp-schema``, docs/devel/qapi-code-gen.rst)."""

    def __init__(self, value: object) -> None:
        self._entities = {(member(each, "name", str), member(each, "meta-type", str)): each for each in elements(value)}
        self._types = {name: each for (name, kind), each in self._entities.items() if kind not in ("command", "event")}

    def knows(self, command: str, path: tuple[str, ...], word: str) -> bool:
        """Whether ``word`` is a member, or a value of an enumeration, at ``path`` below a command's arguments.

        Args:
            path: names of members; ``driver=file`` goes on with the branch of a union that ``driver`` chooses.
        """
        entity = self._entities.get((command, "command"))
        current = self._types.get(member(entity, "arg-type", str)) if entity is not None else None
        for step in path:
            current = self._follow(current, step)
        return current is not None and word in self._words(current)

    def _follow(self, entity: object, step: str) -> object | None:
        if entity is None:
            return None
        tag, equals, value = step.partition("=")
        if not equals:
            chosen = [each for each in member(entity, "members", list, []) if member(each, "name", str) == tag]
        elif member(entity, "tag", str, "") == tag:
            chosen = [each for each in member(entity, "variants", list, []) if member(each, "case", str) == value]
        else:
            return None
        return self._types.get(member(chosen[0], "type", str)) if chosen else None

    def _words(self, entity: object) -> set[str]:
        values = {each for each in member(entity, "values", list, []) if isinstance(each, str)}
        return values | {member(each, "name", str) for each in member(entity, "members", list, [])}

"""Speaking with the systemd that runs the host, or a user's services, over D-Bus.

Decides: how long systemd may take to answer, and how its refusals, and a bus that is not there, read.
Must not: know what a VM is, or what a scope of one consists of (`qsup.host.scope`).

Each errand has a connection of its own, made and closed in some milliseconds: nothing is kept that could be dead when
it is needed. Jeepney is loaded by the first errand, so that a host without systemd does without.

Source: org.freedesktop.systemd1(5); the D-Bus specification.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from qsup.errors import HostError

_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_NAME}.Manager"
#: Seconds for an errand; systemd itself answers in milliseconds, but it is one thread, and may be reading unit files.
TIMEOUT = 5.0
_SYSTEM_BUS = "/run/dbus/system_bus_socket"


@frozen(kw_only=True)
class Property:
    """One property of a unit, as D-Bus carries it.

    Args:
        name: such as ``CPUWeight``.
        signature: of the value's type, such as ``t``.
    """

    name: str
    signature: str
    value: Any


class Refused(HostError):
    """systemd, or the bus, said no.

    Args:
        name: the D-Bus error's, such as ``org.freedesktop.systemd1.UnitExists``.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message, dbus=name)
        self.name = name


@frozen(kw_only=True)
class Systemd:
    """One systemd: the host's, or a user's own.

    Args:
        bus: the socket of the bus that it is on.
        is_system: it is the host's.
    """

    bus: str
    is_system: bool

    @asynccontextmanager
    async def connected(self, *, seconds: float = TIMEOUT) -> AsyncIterator[Connection]:
        """A connection for one errand.

        Args:
            seconds: that the whole errand may take.

        Raises:
            Refused: systemd said no to something.
            HostError: there is no bus, it broke, or all of it took too long.
        """
        import jeepney

        # what comes over a broken bus, in jeepney's words and in trio's
        broken = (OSError, ValueError, LookupError, trio.BrokenResourceError, trio.ClosedResourceError)
        try:
            with trio.fail_after(seconds):
                connection = Connection(await _open(self.bus))
                try:
                    yield connection
                finally:
                    connection.close()
        except jeepney.DBusErrorResponse as error:
            words = str(error.data[0]) if error.data else error.name
            raise Refused(f"systemd: {words}", error.name) from error
        except trio.TooSlowError as error:
            raise HostError(f"systemd did not answer within {seconds:g} s") from error
        except trio.EndOfChannel as error:
            raise HostError("the D-Bus connection to systemd ended") from error
        except broken as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error) or type(error).__name__
            raise HostError(f"no D-Bus connection to systemd by {self.bus}: {why}") from error


class Connection:
    """One conversation: a call at a time."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._results: dict[str, str] = {}

    def close(self) -> None:
        """End it."""
        self._channel.socket.close()

    async def _call(self, target: Sequence[str], member: str, signature: str | None, body: tuple[Any, ...]) -> Any:
        import jeepney

        name, path, interface = target
        address = jeepney.DBusAddress(path, bus_name=name, interface=interface)
        serial = next(self._channel.outgoing_serial)
        await self._channel.send(jeepney.new_method_call(address, member, signature, body), serial=serial)
        while True:
            message = await self._channel.receive()
            if message.header.fields.get(jeepney.HeaderFields.reply_serial) == serial:
                return jeepney.wrappers.unwrap_msg(message)
            self._note(message)

    def _note(self, message: Any) -> None:
        """Remember which jobs have ended: that may be told before the call is answered that began one."""
        import jeepney

        if message.header.fields.get(jeepney.HeaderFields.member) == "JobRemoved":
            _, job, _, result = message.body
            self._results[job] = result

    async def greet(self) -> None:
        """What a bus wants to hear first."""
        await self._call(_BUS, "Hello", None, ())

    async def call(self, member: str, signature: str, *body: Any) -> Any:
        """Call a method of systemd's manager, and return the body of its answer.

        Raises:
            jeepney.DBusErrorResponse: it refused; see `Systemd.connected`.
        """
        return await self._call((_NAME, _PATH, _MANAGER), member, signature, body)

    async def start_transient(self, unit: str, properties: Sequence[Property]) -> str:
        """Make and start a unit, and wait until that is done.

        Returns:
            The result of its job, ``done`` where it was started.
        """
        rule = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved',arg2='{unit}'"
        await self._call(_BUS, "AddMatch", "s", (rule,))
        (job,) = await self.call("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", _packed(properties), [])
        while job not in self._results:
            self._note(await self._channel.receive())
        return self._results[job]

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change properties of a unit that is there, all or none, for as long as it lives; they are in force then."""
        await self.call("SetUnitProperties", "sba(sv)", unit, True, _packed(properties))
        # files of its cgroup are written after the answer, and before the next call is looked at
        await self.call("GetUnit", "s", unit)


def _packed(properties: Sequence[Property]) -> list[tuple[str, tuple[str, Any]]]:
    return [(each.name, (each.signature, each.value)) for each in properties]


async def _open(bus: str) -> Any:
    """A connection that has said who it is; without jeepney's own router, which would be a task beside this one."""
    from jeepney.auth import BEGIN, Authenticator
    from jeepney.io.trio import DBusConnection

    stream = await trio.open_unix_socket(bus)
    try:
        await stream.send_all(b"\0")
        authenticator = Authenticator(inc_null_byte=False)
        for request in authenticator:
            await stream.send_all(request)
            authenticator.feed(await stream.receive_some())
        await stream.send_all(BEGIN)
        channel = DBusConnection(stream.socket)
        await Connection(channel).greet()
    except BaseException:
        stream.socket.close()
        raise
    return channel


def find(env: Mapping[str, str], uid: int, *, booted: Path = Path("/run/systemd/system")) -> Systemd | None:
    """The systemd that makes units for a user, where one runs (sd_booted(3)).

    Args:
        env: names the buses where they are elsewhere than usual.
        uid: 0 for the host's own, else the user's.
    """
    if not booted.is_dir():
        return None
    name = "DBUS_SESSION_BUS_ADDRESS" if uid else "DBUS_SYSTEM_BUS_ADDRESS"
    usual = f"/run/user/{uid}/bus" if uid else _SYSTEM_BUS
    path = _path_of(env.get(name, "")) or usual
    return Systemd(bus=path, is_system=not uid)


def _path_of(address: str) -> str:
    """The socket of a D-Bus address, ``""`` where it is no path."""
    for part in address.split(";"):
        kind, _, rest = part.partition(":")
        keys = dict(each.partition("=")[::2] for each in rest.split(","))
        if kind == "unix" and "path" in keys:
            return keys["path"]
    return ""

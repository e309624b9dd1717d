"""What can lie in a driver's inbox. Pure.

Decides: the kinds of message.
Must not: act on them.

A message about one life of the VM carries that life's number; the driver drops it when a later life has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from qsup.errors import QsupError
from qsup.instance.cause import Cause
from qsup.instance.life import Life
from qsup.instance.runstate import Guest
from qsup.instance.state import Event, Request
from qsup.unit.load import LoadedUnit


@frozen(kw_only=True)
class Asked:
    """Somebody wants something; the operation exists already and holds the VM.

    Args:
        loaded: the VM's unit, where it has just been read.
        in_turn: a stop that need wait for no other VM's any more.
        tried: a stop that need not wait for the monitor to be reached any more.
    """

    operation: str
    request: Request
    loaded: LoadedUnit | None = None
    in_turn: bool = False
    tried: bool = False


@frozen(kw_only=True)
class Hasten:
    """The stop that holds the VM is to wait no more: neither for its turn nor for the guest.

    Args:
        cut_short: called when it did.
    """

    operation: str
    cut_short: Callable[[], None]


@frozen(kw_only=True)
class Happened:
    """An event of the table."""

    life: int
    event: Event
    cause: Cause | None = None


@frozen(kw_only=True)
class Seen:
    """How the guest is by QEMU's answer to a query, which may be older than the last event."""

    life: int
    guest: Guest
    cause: Cause | None


@frozen(kw_only=True)
class LaunchEnded:
    """The launch brought the VM to life, or gave everything back: then ``error`` says why, ``None`` for a cancel.

    ``output`` is what QEMU printed meanwhile.
    """

    life: int
    born: Life | None = None
    error: QsupError | None = None
    output: bytes = b""


@frozen(kw_only=True)
class ProcessEnded:
    """QEMU's process is gone."""

    life: int
    cause: Cause


@frozen(kw_only=True)
class Finished:
    """A request that needs no state of its own (pause, reset...) was carried out, or failed."""

    operation: str
    result: Mapping[str, Any] | None = None
    error: QsupError | None = None


@frozen(kw_only=True)
class Noted:
    """Something that is shown, but moves no state; ``changes`` are fields of `qsup.instance.shown.Observed`."""

    life: int
    changes: Mapping[str, Any]


@frozen(kw_only=True)
class Waits:
    """What was asked of QEMU was taken, and the guest has to fulfil it.

    Args:
        entry: of the unit that is on its way out.
        force_after: seconds from the request until the guest is reset, ``None`` for never.
        persist: its unit is not to have it any more, either.
    """

    operation: str
    entry: str
    force_after: float | None
    persist: bool = False


@frozen(kw_only=True)
class Filed:
    """The unit's files were changed by a request; what they say now."""

    loaded: LoadedUnit


@frozen(kw_only=True)
class Lasts:
    """What was asked of QEMU was taken, and the guest works on it."""

    operation: str


@frozen(kw_only=True)
class Unplugged:
    """A device has gone, or its guest does not let it go; of a device without an id there is only ``path``."""

    life: int
    device: str
    refused: bool = False


@frozen(kw_only=True)
class TrayMoved:
    """The tray of a CD drive was opened or closed; ``drive`` is QEMU's id of it."""

    life: int
    drive: str
    open: bool


@frozen(kw_only=True)
class Settled:
    """What QEMU has was looked at anew; entries that are gone are so entirely."""

    life: int
    gone: tuple[str, ...]


#: The type of the event that tells of a reset.
RESET = "guest-reset"
#: A device of the host is not plugged in any more, or is so again.
DEVICE_PULLED = "device-pulled"
#: A thread of QEMU was moved off its CPUs by somebody, and is back.
PIN_DRIFT = "pin-drift"
#: A program that serves a device has ended.
HELPER_ENDED = "helper-ended"


@frozen(kw_only=True)
class Told:
    """Something that is worth an event of its own and moves no state; ``type`` is the event's."""

    life: int
    type: str
    data: Mapping[str, Any]


Message = (
    Asked
    | Hasten
    | Happened
    | LaunchEnded
    | ProcessEnded
    | Finished
    | Waits
    | Filed
    | Lasts
    | Unplugged
    | TrayMoved
    | Settled
    | Noted
    | Seen
    | Told
)

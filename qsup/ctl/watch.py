"""Waiting for a VM: subscribe first, then read, then read again whenever something happened. No polling.

Decides: when a wait is over, and that it cannot miss a change.
Must not: know what is waited for.
"""

from __future__ import annotations

from qsup.api.protocol import PREFIX, instance_path, quote
from qsup.ctl.connection import Deadline
from qsup.errors import ClientError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qsup.api.wire import Instance
    from qsup.ctl.client import Client
    from qsup.ctl.connection import Stream


def events_of(client: Client, name: str) -> Stream:
    """The events of one VM from now on; what happens after this returns is in it."""
    return client.stream(f"{PREFIX}/events?instance={quote(name)}")


def wait_for(client: Client, name: str, reached: Callable[[Instance], bool], *, deadline: Deadline) -> Instance:
    """Wait until a VM is as wanted.

    Args:
        reached: judges each new view; may raise when it never will be.

    Returns:
        The view that was judged good.

    Raises:
        ClientError: the deadline is over; the message says where the VM stands.
        NoSuchInstance: there is no such VM (any more).
        DaemonUnreachable: the daemon is gone.
    """
    fruitless = 0
    while True:
        with events_of(client, name) as events:
            while True:
                instance: Instance = client.get(instance_path(name))
                if reached(instance):
                    return instance
                if _next_batch(events, instance, deadline) is None:
                    break
                fruitless = 0
        # a reader that fell behind, or a daemon that changes places: what was missed is read again
        fruitless += 1
        if fruitless > 1:
            raise DaemonUnreachable("the daemon ends every stream of events at once", instance=name)


def _next_batch(events: Stream, instance: Instance, deadline: Deadline) -> list[bytes] | None:
    try:
        return events.read(deadline)
    except DaemonUnreachable:
        if deadline.left() != 0.0:
            raise
    raise ClientError(
        f"the time is over; it is {instance['state']} ({instance['substate']})",
        instance=instance["name"],
        hint=f"qsupctl status {instance['name']} shows more",
    )

"""Connecting to the Unix sockets of a VM, and making a monitor of such a connection.

Decides: how a path beyond 107 bytes is reached, which failures to connect pass, when a monitor is ready.
Must not: send any command but the one that negotiates.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from qsup.errors import (
    MonitorClosed,
    MonitorConnectError,
    MonitorError,
    MonitorProtocolError,
    MonitorTimeout,
    QmpCommandError,
)
from qsup.qmp.connection import LatencyHook, Monitor

_RETRY_INTERVAL = 0.02


class _TryAgain(MonitorConnectError):
    """Not connected this time, but a new attempt may be."""


def connect_unix(path: Path) -> socket.socket:
    """Connect to a listening stream socket without ever blocking.

    The path is reached through a descriptor of its directory, so that it may be longer than ``sun_path`` (unix(7)).

    Returns:
        a connected, non-blocking, close-on-exec socket that the caller owns.

    Raises:
        OSError: as connect(2) says; `BlockingIOError` when the listener's backlog is full.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.setblocking(False)
            stream.connect(f"/proc/self/fd/{directory}/{path.name}")
        except BaseException:
            stream.close()
            raise
    finally:
        os.close(directory)
    return stream


async def connect_monitor(
    nursery: trio.Nursery,
    path: Path,
    *,
    name: str,
    timeout: float,
    on_latency: LatencyHook | None = None,
) -> Monitor:
    """Connect to the monitor that listens at ``path``, of any length, and negotiate.

    The listener is bound before QEMU is executed, so this may be called as soon as it is. While another client is
    served, or the backlog is full, it is tried again until the time is up.

    Args:
        nursery: where the monitor's reading task lives; cancelling it ends the connection.
        path: the listening socket.
        name: the VM's, for errors.
        timeout: seconds until the monitor must be ready; a VM's memory, NICs and VFIO devices make it slower.
        on_latency: called with a command's name and the seconds from sending to its answer.

    Raises:
        MonitorConnectError: nobody listens, QEMU ended, or it was not ready in time.
        MonitorProtocolError: what came was not QMP.
    """
    deadline = trio.current_time() + timeout
    while True:
        try:
            stream = connect_unix(path)
            left = deadline - trio.current_time()
            return await start_monitor(nursery, stream, name=name, timeout=left, on_latency=on_latency)
        except (FileNotFoundError, ConnectionRefusedError, PermissionError) as error:
            # our own listener was there before QEMU was: these do not pass
            words = f"nobody listens on the monitor socket: {error.strerror}"
            raise MonitorConnectError(words, instance=name) from error
        except (OSError, _TryAgain) as error:
            if trio.current_time() + _RETRY_INTERVAL > deadline:
                raise MonitorConnectError(f"the monitor is busy: {error}", instance=name) from error
        await trio.sleep(_RETRY_INTERVAL)


async def start_monitor(
    nursery: trio.Nursery,
    stream: socket.socket,
    *,
    name: str,
    timeout: float,
    on_latency: LatencyHook | None = None,
) -> Monitor:
    """Negotiate on a connected Unix socket, which becomes the monitor's; otherwise as `connect_monitor`."""
    stream.setblocking(False)
    monitor = Monitor(stream, name=name, on_latency=on_latency)
    nursery.start_soon(monitor.run, name=f"qmp {name}")
    try:
        await _negotiate(monitor, timeout)
    except BaseException:
        monitor.close_nowait()
        raise
    return monitor


async def _negotiate(monitor: Monitor, timeout: float) -> None:
    deadline = trio.current_time() + timeout
    with trio.move_on_at(deadline) as scope:
        await monitor.wait_greeted()
    if scope.cancelled_caught:
        words = f"no greeting within {timeout:g} s: QEMU hangs, or serves another client"
        raise MonitorConnectError(words, instance=monitor.name)
    if monitor.close_reason is not None:
        raise _not_ready(monitor)
    capabilities = ["oob"] if monitor.oob else []
    try:
        left = deadline - trio.current_time()
        await monitor.execute("qmp_capabilities", {"enable": capabilities}, timeout=left)
    except MonitorTimeout as error:
        words = f"QEMU greeted, but was not ready within {timeout:g} s"
        raise MonitorConnectError(words, instance=monitor.name) from error
    except QmpCommandError as error:
        raise _TryAgain(error.message, instance=monitor.name) from error
    except (MonitorClosed, MonitorProtocolError) as error:
        raise _not_ready(monitor) from error


def _not_ready(monitor: Monitor) -> MonitorError:
    reason = monitor.close_reason
    if isinstance(reason, MonitorProtocolError):
        return MonitorProtocolError(reason.message, instance=monitor.name)
    # a broken connection is a busy or dying listener's, and connecting again tells which; an end is QEMU's own
    kind = MonitorConnectError if reason is not None and reason.__cause__ is None else _TryAgain
    words = reason.message if reason is not None else "the connection broke"
    return kind(f"the monitor never became ready: {words}", instance=monitor.name)

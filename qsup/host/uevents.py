"""What the kernel says of CPUs that go on- or offline.

Decides: which of its messages are of that. Must not: know who wants to hear of it.

Source: netlink(7), NETLINK_KOBJECT_UEVENT; Linux's lib/kobject_uevent.c, Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import AsyncGenerator

import trio

_KOBJECT_UEVENT, _FROM_KERNEL = 15, 1  # a netlink family, and the group of those who hear the kernel itself
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which Python does not name
_MOST = 8192  # bytes of a message: UEVENT_BUFFER_SIZE is 2048
_WORDS = (b"online@", b"offline@")
_CPUS = b"/devices/system/cpu/cpu"
#: A program for the kernel, so that nobody is woken by what is said of disks and networks: load the first four bytes,
#: and keep the message if they begin one of those words.
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_FILTER = (
    (_LOAD, 0, 0, 0),
    (_EQUAL, 1, 0, int.from_bytes(_WORDS[0][:4], "big")),
    (_EQUAL, 0, 1, int.from_bytes(_WORDS[1][:4], "big")),
    (_RETURN, 0, 0, _MOST),
    (_RETURN, 0, 0, 0),
)


def is_of_cpu(message: bytes, sender: int) -> bool:
    """Whether a message says that a CPU went on- or offline.

    Args:
        sender: its netlink port; the kernel's is 0, and others may write to the group as well.
    """
    word, at, path = message.partition(b"@")
    return sender == 0 and word + at in _WORDS and path.startswith(_CPUS)


def heard(listening: socket.socket) -> bool:
    """Take all that was said by now; whether a CPU went on- or offline, or may have: some of much that is said is lost.

    Args:
        listening: does not block.

    Raises:
        OSError: the kernel lets us hear no more.
    """
    found = False
    while True:
        try:
            message, (sender, _) = listening.recvfrom(_MOST)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
        else:
            found |= is_of_cpu(message, sender)


async def cpu_changes() -> AsyncGenerator[None, None]:
    """Each time when CPUs went on- or offline; once for all that did so since.

    Raises:
        OSError: the kernel lets us not hear it.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _KOBJECT_UEVENT) as listening:
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _FILTER))
        listening.setsockopt(
            socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(_FILTER), ctypes.addressof(program))
        )
        listening.bind((0, _FROM_KERNEL))
        listening.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listening)
            if heard(listening):
                yield

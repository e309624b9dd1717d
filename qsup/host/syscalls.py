"""System calls that Python's standard library does not wrap.

Decides: how their arguments are laid out.
Must not: hold policy; each function is one call that raises `OSError` as the kernel answers.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
# the same numbers on every architecture but alpha
_CLOSE_RANGE = 436
_OPENAT2 = 437
_CLOSE_RANGE_CLOEXEC = 1 << 2
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_PR_SET_THP_DISABLE = 41
_AT_FDCWD, _RENAME_EXCHANGE = -100, 1 << 1

CLONE_NEWNS = 0x20000
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open a path under restrictions on how it resolves (openat2(2), Linux 5.6); close-on-exec.

    Raises:
        OSError: EXDEV where ``RESOLVE_BENEATH`` is broken, ELOOP for a magic link, ENOSYS on an older kernel.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    return _check(_libc.syscall(ctypes.c_long(_OPENAT2), directory, os.fsencode(path), ctypes.byref(how), size))


def exchange(one: str, other: str) -> None:
    """Have two files change names, in one step (renameat2(2), ``RENAME_EXCHANGE``).

    Raises:
        OSError: EINVAL where the file system cannot, ENOENT when either is missing.
    """
    at = ctypes.c_int(_AT_FDCWD)
    names = os.fsencode(one), os.fsencode(other)
    _check(_libc.renameat2(at, names[0], at, names[1], ctypes.c_uint(_RENAME_EXCHANGE)))


def give_back_memory() -> None:
    """Have the C library give what is free back to the kernel (malloc_trim(3)); where it has no such call, nothing."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def unshare(flags: int) -> None:
    """Give the calling thread, and what it starts, attributes or namespaces of its own (unshare(2))."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def follow_mounts() -> None:
    """Keep what is mounted here to this namespace, and go on seeing what is mounted elsewhere (mount_namespaces(7))."""
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def set_thp_disable(disabled: bool) -> None:
    """Have this process, and all that it starts from now on, get no transparent huge pages, or get them (prctl(2))."""
    _check(_libc.prctl(_PR_SET_THP_DISABLE, *map(ctypes.c_ulong, (disabled, 0, 0, 0))))


def bind_mount(source: str, target: str) -> None:
    """Show one file in another's place (mount(2), ``MS_BIND``)."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None))


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor of this process from ``first`` on close-on-exec (close_range(2), Linux 5.11)."""
    last = ctypes.c_uint(0xFFFFFFFF)
    flags = ctypes.c_uint(_CLOSE_RANGE_CLOEXEC)
    _check(_libc.syscall(ctypes.c_long(_CLOSE_RANGE), ctypes.c_uint(first), last, flags))

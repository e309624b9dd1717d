"""``[unit]``, ``[install]`` and ``[service]``: what supervises a VM.

Decides: their keys. Must not: hold what QEMU is told.
"""

from __future__ import annotations

from attrs import frozen

from qsup.unit import kinds
from qsup.unit.keys import Applies, key
from qsup.unit.kinds import Ready

_S = Applies.SUPERVISOR


@frozen(kw_only=True)
class UnitSection:
    """``[unit]``: what the VM is and how it relates to others."""

    description: str = key(kinds.STRING, "One line for people, shown by `list` and `status`.", default="", applies=_S)
    after: tuple[str, ...] = key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that, when they are started too, are ready before this one is started, and that stop after it has "
        "stopped. It starts none of them.",
        default=(),
        applies=_S,
    )
    before: tuple[str, ...] = key(
        kinds.list_of(kinds.UNIT_NAME),
        "The same from the other side: these VMs are `after` this one.",
        default=(),
        applies=_S,
    )
    requires: tuple[str, ...] = key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are started with this one. When one of them cannot be started, or is not up when it is the turn "
        "of this one, this one fails (`start-failed`, cause `dependency`); when an operator stops or restarts "
        "one, so is this one. It orders nothing: mostly the same names stand in `after`.",
        default=(),
        applies=_S,
    )
    wants: tuple[str, ...] = key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are started with this one; their failure is ignored. It orders nothing.",
        default=(),
        applies=_S,
    )
    conflicts: tuple[str, ...] = key(
        kinds.list_of(kinds.UNIT_NAME),
        "VMs that are not active at the same time: a start of one stops the other first, gracefully.",
        default=(),
        applies=_S,
    )


@frozen(kw_only=True)
class InstallSection:
    """``[install]``: what happens when the daemon starts."""

    autostart: bool = key(
        kinds.BOOLEAN,
        "Start the VM with the first daemon after each boot of the host (`qsupctl enable`). One that has run since the "
        "boot and is down stays so when the daemon is restarted.",
        default=False,
        applies=_S,
    )


STOP_METHODS = ("agent", "acpi", "quit", "term", "kill")


@frozen(kw_only=True)
class ServiceSection:
    """``[service]``: how the VM is started, watched, restarted and stopped."""

    restart: str = key(
        kinds.choice("no", "on-failure", "on-panic", "always"),
        "When the VM is started again after it ended by itself. `on-failure`: after a crash of QEMU, a failed start, a "
        "panic of the guest or its watchdog; `on-panic`: after the last two alone; `always`: also after the guest "
        "powered itself off. A guest that resets itself, or is paused for an I/O error, has not ended. An operator's "
        "stop is never undone.",
        default="no",
        applies=_S,
    )
    restart_delay: float = key(
        kinds.duration(0.01),
        "Wait before the first restart; each further one waits twice as long. The delays begin anew when somebody "
        "starts the VM, or once it has been ready and has run for longer than `start-limit-interval` and "
        "`restart-max-delay`.",
        default=1.0,
        applies=_S,
    )
    restart_max_delay: float = key(kinds.duration(0.01), "The longest wait before a restart.", default=60.0, applies=_S)
    start_limit_burst: int = key(
        kinds.integer(0, 1_000_000),
        "After that many automatic restarts within `start-limit-interval` the VM stays down (`start-limit-hit`); 0: no "
        "limit.",
        default=5,
        applies=_S,
    )
    start_limit_interval: float = key(
        kinds.duration(),
        "The time over which restarts are counted for `start-limit-burst`.",
        default=300.0,
        applies=_S,
    )
    start_timeout: float = key(
        kinds.optional(kinds.duration(0.1), 0.0),
        "From the start of QEMU until the VM is ready; then it is stopped and has failed. By default 90 seconds, and 3 "
        "more for each GiB of memory that is taken before the guest runs (`prealloc`, `lock`, `hugepages`).",
        default=0.0,
        applies=_S,
    )
    stop_methods: tuple[str, ...] = key(
        kinds.list_of(kinds.choice(*STOP_METHODS)),
        "How the VM is stopped. The order is fixed: the guest agent's shutdown (skipped when no agent answers), the "
        "ACPI power button (pressed every five seconds, for a guest that is just booting hears it later), QMP `quit`, "
        "SIGTERM, SIGKILL. The list chooses among them, in any order, and SIGKILL always comes last, listed or not.",
        default=STOP_METHODS,
        qemu="guest-shutdown, system_powerdown, quit",
        applies=_S,
    )
    stop_timeout: float = key(
        kinds.duration(0.1),
        "How long the guest has to power off after `agent` or `acpi`, each.",
        default=90.0,
        applies=_S,
    )
    quit_timeout: float = key(kinds.duration(0.1), "How long QEMU has to end after `quit`.", default=10.0, applies=_S)
    term_timeout: float = key(kinds.duration(0.1), "How long QEMU has to end after SIGTERM.", default=5.0, applies=_S)
    ready: Ready = key(
        kinds.READY,
        'What makes the VM ready: `"running"`, `"agent"` (the guest agent answers), `{ serial = "TEXT" }` (literal '
        "text on the serial console) or `{ port = 22 }` (the guest accepts a TCP connection through its forward). A VM "
        "that is being waited for goes on by what it was started with. A text that may have gone by while no daemon "
        "ran is waited for, for another `start-timeout`, and then taken as seen, with the cause `ready-assumed`.",
        default=Ready(on="running"),
        applies=_S,
    )

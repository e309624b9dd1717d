"""How a VM stands to others: whether it is up, is being started, or is being stopped.

Decides: what of a VM's state and of the operation that holds it another VM has to wait for.
Must not: wait, or know relations.
"""

from __future__ import annotations

from qsup.instance.driver import Driver
from qsup.instance.settle import DOWN
from qsup.instance.state import BEING_STARTED, Level, Request
from qsup.unit.effective import start_timeout


def is_starting(driver: Driver) -> bool:
    """Whether a start of it is under way, or will follow the stop of a restart."""
    holder = driver.holder
    if holder is not None and holder.request in (Request.START, Request.RESTART):
        return True
    return driver.state in BEING_STARTED and not is_stopping(driver)


def is_stopping(driver: Driver) -> bool:
    """Whether an operation is to stop it and has not: that of a VM which ends by itself is none."""
    holder = driver.holder
    if holder is None:
        return False
    if holder.request is Request.RESTART:
        return (not holder.begun or holder.start_next) and driver.state.level not in DOWN
    return holder.request in (Request.STOP, Request.KILL)


def is_up(driver: Driver) -> bool:
    """Whether it runs, is about to, or is being stopped."""
    return driver.state.level not in DOWN or is_starting(driver)


def is_there(driver: Driver) -> bool:
    """Whether a start of it would do nothing."""
    return not is_stopping(driver) and (driver.state.level is Level.ACTIVE or is_starting(driver))


def words(driver: Driver) -> str:
    """How it stands, for people: ``failed (start-failed): could not open...``."""
    state, cause = driver.state, driver.view.cause
    why = (cause.detail or cause.text) if cause else ""
    return f"{state.level.value} ({state.substate})" + (f": {why}" if why else "")


def start_budget(driver: Driver) -> float:
    """Seconds after which a start of it is over, one way or another."""
    return start_timeout(driver.loaded.unit) + stop_budget(driver)


def stop_budget(driver: Driver) -> float:
    """Seconds after which a stop of it is over, even when the kernel keeps the process."""
    service = driver.loaded.unit.service
    guest = driver.holder.timeout if driver.holder and driver.holder.timeout else service.stop_timeout
    return 2 * guest + service.quit_timeout + service.term_timeout + _KILL_AND_SLACK


#: Seconds for SIGKILL, for commands that are not answered, and for tidying up.
_KILL_AND_SLACK = 30.0

"""The states of VMs, as words on the command line.

Decides: which words those are, so that one that can never match is refused before anything is asked.
Must not: import the daemon's table, which has them and costs its start; a test compares.
"""

from __future__ import annotations

#: What a VM that has failed never reaches by itself.
UP_STATES = (
    *("active", "activating", "deactivating"),
    *("waiting-deps", "spawning", "waiting-ready", "auto-restart", "running", "paused"),
    *("io-error", "guest-panicked"),
    *("unresponsive", "unreachable", "stopping-guest", "stopping-quit", "stopping-term", "stopping-kill"),
    *("exiting", "stuck"),
)
#: What a VM that has failed may be, or become.
DOWN_STATES = ("inactive", "failed", "dead", "crashed", "start-failed", "start-limit-hit", "quarantined")
STATES = (*UP_STATES, *DOWN_STATES)


def suggestion(text: str, words: tuple[str, ...]) -> str:
    """``"; did you mean x?"`` where one of the words is close, else ``""``."""
    from difflib import get_close_matches

    near = get_close_matches(text[:64], words, n=1)
    return f"; did you mean {near[0]}?" if near else ""

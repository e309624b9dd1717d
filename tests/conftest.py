"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("qsup", deadline=None, print_blob=True)
hypothesis.settings.load_profile("qsup")

REAL = Path(__file__).parent / "real"
EMULATORS = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts a real QEMU; leave out, and count as deselected, what needs a root that we are not."""
    for item in items:
        if item.path.is_relative_to(REAL):
            item.add_marker("real")
    if os.geteuid() == 0:
        return
    rooted = [item for item in items if item.get_closest_marker("root")]
    if rooted:
        config.hook.pytest_deselected(items=rooted)
        items[:] = [item for item in items if item not in rooted]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which QEMUs the real tests ran on, and that a second one was not to be had."""
    if found := config.stash.get(EMULATORS, None):
        alone = "; no second one was to be had" if len(found) == 1 else ""
        terminalreporter.write_line(f"Real tests ran on {', '.join(found) or 'no QEMU at all'}{alone}.")

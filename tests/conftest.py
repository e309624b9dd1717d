"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import leftovers
from tests.guests import emulators

hypothesis.settings.register_profile("qsup", deadline=None, print_blob=True)
hypothesis.settings.load_profile("qsup")

REAL = Path(__file__).parent / "real"


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Share the machine with other tests that change it, unless a test is marked to have it ``alone``."""
    if not any(request.node.get_closest_marker(mark) for mark in ("real", "root")):
        yield
        return
    with leftovers.machine(alone=request.node.get_closest_marker("alone") is not None):
        yield


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A directory that any user can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.name.startswith(("pytest-", "popen-")) or directory == tmp_path:
            directory.chmod(0o755)
    return tmp_path


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which QEMUs the real tests ran on, and that a second one was not to be had."""
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.stats.get(kind, ())]
    if any("real" in getattr(report, "keywords", ()) for report in reports):
        found = list(map(str, emulators()))
        alone = "; no second one was to be had" if len(found) == 1 else ""
        terminalreporter.write_line(f"Real tests ran on {', '.join(found) or 'no QEMU at all'}{alone}.")

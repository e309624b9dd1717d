"""The campaign as a plugin of pytest: which tests run, how often, and what they report.

Decides: that a test which does not repeat itself is repeated, that what needs root and does not get it is named, and
that whatever a test leaves behind counts as lost: the tests' own fixtures look for it.
Must not: count or print; `tests.faults.tally` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import pytest

from tests.faults.cases import case_of
from tests.faults.tally import Tally

_STEP = "campaign_step"


class Campaign:
    """One run.

    Args:
        names: of the cases that were asked for.
        tries: how often a fault is repeated, by its test or with it, ``None`` for what the cases say.
        user: with an ordinary user's daemon.
    """

    def __init__(self, names: Iterable[str], *, tries: int | None, user: bool) -> None:
        self.tally = Tally(names)
        self.user = user
        self._tries = tries
        self._failed: set[str] = set()
        self._seconds = 0.0

    def pytest_configure(self, config: pytest.Config) -> None:
        """Let the tests' fixtures find the campaign."""
        config.stash[CAMPAIGN] = self

    def tries_of(self, nodeid: str) -> int:
        """How often a test that repeats a fault shall do so."""
        case = case_of(nodeid)
        return self._tries or (case.tries if case else 1)

    @pytest.fixture
    def campaign_step(self, request: pytest.FixtureRequest) -> int:
        """Which run of a test this is."""
        return int(request.param)

    @pytest.hookimpl(trylast=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test that does not repeat itself again and again."""
        case = case_of(metafunc.function.__name__)
        if case is not None and "tries" not in metafunc.fixturenames:
            metafunc.fixturenames.append(_STEP)
            metafunc.parametrize(_STEP, range(self._tries or case.repeat), indirect=True)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the cases that were asked for, in the cases' order."""
        order = list(self.tally.rows)
        if self.user:
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("root")])
            items[:] = [item for item in items if not item.get_closest_marker("root")]
        items[:] = [item for item in items if _case_name(item) in order]
        items.sort(key=lambda item: order.index(_case_name(item)))

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Name what does not run for want of root; whoever is not root does not even get so far as to leave it out."""
        for item in items:
            if row := self.tally.rows.get(_case_name(item)):
                row.leave_out(item.name.partition("[")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once it has been torn down: what it leaves behind is lost, too."""
        if report.failed:
            self._failed.add(report.nodeid)
            # at once: the rest may take half an hour
            print(f"\nlost in {report.nodeid}: {_reason(report)}", file=sys.stderr, flush=True)
        case = case_of(report.nodeid)
        if report.when == "call":
            self._seconds = report.duration
        if report.when == "teardown":
            self.tally.count(
                case.name if case else None,
                failed=report.nodeid in self._failed,
                seconds=self._seconds,
                told=report.user_properties,
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test module that cannot be read hides what it would have found."""
        self.tally.strays += report.failed


def _case_name(item: pytest.Item) -> str:
    case = case_of(item.nodeid)
    return case.name if case else ""


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longreprtext)[:500]


CAMPAIGN = pytest.StashKey[Campaign]()

"""Fixtures for tests that start a real QEMU.

Decides: on which QEMUs they run, where their files live, and that nothing is left behind.
Must not: know anything of qsup's insides.

A test that asks for ``qemu`` runs once on every QEMU this machine has. ``root_dir`` is its directory, short enough for
socket paths and open to every uid. After each test all that came since it began and belongs to this session is ended,
and the test fails naming it. When a test fails its logs are shown, and kept in the directory that the report names.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.faults.plugin import CAMPAIGN
from tests.faults.trial import FEW, Promise, Tries
from tests.guests import Emulator, LinuxGuest, emulators
from tests.guests import linux_guest as find_linux_guest
from tests.guests import rom_guest as find_rom_guest
from tests.real.daemons import Daemon
from tests.real.hosted import Hosted, HostedDaemon, install
from tests.real.mortal import Mortal, may_die
from tests.real.users import UsersDaemon

EVIDENCE = pytest.StashKey[tuple[leftovers.Session, Path]]()
# Of each log, what a report shows; of each file, what is kept.
SHOWN, KEPT = 4096, 1 << 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``qemu`` on each."""
    if "qemu" in metafunc.fixturenames:
        found = emulators()
        assert found, "qemu-system-x86_64 is not installed: contrib/test.sh does it"
        metafunc.parametrize("qemu", found, ids=str, scope="session")


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """One QEMU, where it does not matter which."""
    return emulators()[0]


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Tries:
    """How often a fault is repeated: a few times, or as often as `tests.faults` wants."""
    campaign = request.config.stash.get(CAMPAIGN, None)
    count = FEW if campaign is None else campaign.tries_of(request.node.nodeid)
    return Tries(count=count, properties=request.node.user_properties)


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Where a test tells what it measured of what is promised."""
    return Promise(properties=request.node.user_properties)


@pytest.fixture
def daemon(root_dir: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A running daemon, ended with all its VMs; a user's where `tests.faults` wants that."""
    campaign = request.config.stash.get(CAMPAIGN, None)
    found = UsersDaemon(root_dir) if campaign is not None and campaign.user else Daemon(root_dir)
    found.start()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def rom_guest() -> Path:
    """The ROM guest: up in 50 ms, obeys single keys."""
    return find_rom_guest()


@pytest.fixture(scope="session")
def linux_guest() -> LinuxGuest:
    """The Linux guest: 4 s to its agent under TCG, in 128 MiB."""
    return find_linux_guest()


@pytest.fixture(scope="session", autouse=True)
def session() -> Iterator[leftovers.Session]:
    """Make the session's directory, mark what it starts, and look once more at its end."""
    found = leftovers.Session(root=Path(tempfile.mkdtemp(prefix="qsup-")), mark=uuid.uuid4().hex)
    found.root.chmod(0o755)
    os.environ[leftovers.MARK] = found.mark
    with leftovers.machine(alone=True):
        before = leftovers.take(alone=True)
    yield found
    with leftovers.machine(alone=True):
        words = leftovers.clear(before, found, found.root)
    shutil.rmtree(found.root, ignore_errors=True)
    if words:
        whose = "left by a fixture that outlives a test, or by a test without a word whose it is"
        pytest.fail(f"{whose}:\n  " + "\n  ".join(words), pytrace=False)


@pytest.fixture(scope="session")
def hosted(session: leftovers.Session, emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[Hosted]:
    """A host of several NUMA nodes that systemd runs, with qsup installed; it lasts as long as the session."""
    found = Hosted(session.root / "host", emulator)
    try:
        install(found)
        yield found
    finally:
        if found.silences and (reporter := request.config.pluginmanager.get_plugin("terminalreporter")):
            reporter.write_line(f"The emulated host has booted in vain: {found.silences}")
        found.close()


@pytest.fixture
def hosts_daemon(hosted: Hosted, root_dir: Path) -> Iterator[HostedDaemon]:
    """The daemon of that host; its VMs and units go with the test."""
    found = HostedDaemon(root_dir, hosted)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(autouse=True)
def root_dir(session: leftovers.Session, machine: None, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A test's own directory; the test fails on anything that it leaves behind."""
    root = Path(tempfile.mkdtemp(prefix="t", dir=session.root))
    root.chmod(0o755)
    request.node.stash[EVIDENCE] = (session, root)
    before = leftovers.take(alone=request.node.get_closest_marker("alone") is not None)
    yield root
    words = leftovers.clear(before, session, root)
    shutil.rmtree(root, ignore_errors=True)
    if words:
        pytest.fail("left behind:\n  " + "\n  ".join(words), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show and keep the logs of a failed test while what it started still runs."""
    report = yield
    if report.failed and call.when != "teardown" and EVIDENCE in item.stash:
        session, root = item.stash[EVIDENCE]
        report.sections.append(_running(session, root))
        report.sections.extend(_logs(root))
        if kept := _keep(root, item.name):
            report.sections.append(("kept", str(kept)))
    return report


def _running(session: leftovers.Session, root: Path) -> tuple[str, str]:
    nothing = leftovers.Snapshot(processes=frozenset(), things=frozenset(), descriptors=frozenset(), alone=False)
    ours = leftovers.left(nothing, session, root).processes
    return "processes", "\n".join(f"{process.pid}: {process.command()}" for process in ours)


def _evidence(root: Path) -> list[Path]:
    """The regular files below a test's directory that are text as far as one can see."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [path for path in found if path.stat().st_size and b"\0" not in _tail(path, SHOWN)]


def _tail(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - length))
        return file.read(length)


def _logs(root: Path) -> Iterator[tuple[str, str]]:
    for path in _evidence(root):
        yield str(path.relative_to(root)), _tail(path, SHOWN).decode(errors="replace")


def _keep(root: Path, test: str) -> Path | None:
    """Copy a failed test's logs to where they outlive it, in place of those of its last failure."""
    name = re.sub(r"[^\w.-]+", "_", test)
    kept = Path(tempfile.gettempdir(), f"qsup-failures-{os.geteuid()}", name)
    shutil.rmtree(kept, ignore_errors=True)
    for path in _evidence(root):
        copy = kept / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(_tail(path, KEPT))
    return kept if kept.exists() else None


@pytest.fixture
def mortal(root_dir: Path) -> Iterator[Mortal]:
    """A daemon that dies at a step when it is told to, and has not been told yet."""
    with may_die(root_dir) as daemon:
        yield daemon

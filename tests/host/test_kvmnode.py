"""Tests of `qsup.host.kvmnode`: who gets a /dev/kvm of his own, in which namespace, and how long the node stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from qsup.errors import StartError
from qsup.host import kvmnode
from qsup.host.process import spawn
from tests.host.children import children, is_stopped
from tests.host.launching import VM_USER, Printed, run
from tests.waiting import wait_until

NEEDS_KVM = pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="missing hardware: this host has no /dev/kvm")


@pytest.fixture
def kvm_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A place of the test's own for the KVM node; it is taken away again."""
    directory = Path(f"/dev/qsup-test-{uuid.uuid4().hex[:8]}")
    monkeypatch.setattr(kvmnode, "DIRECTORY", directory)
    monkeypatch.setattr(kvmnode, "NODE", directory / "kvm")
    yield
    kvmnode.release()


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "excluded"),
    [
        (0o666, 0, 0, False),
        (0o660, 0, 0, True),
        (0o664, 0, 0, True),
        (0o660, 0, VM_USER.gid, False),
        (0o606, 0, VM_USER.gid, True),
        (0o600, VM_USER.uid, 0, False),
        (0o066, VM_USER.uid, 0, True),
    ],
)
def test_kvm_node_is_for_those_whom_the_hosts_excludes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, excluded: bool
) -> None:
    """The class of /dev/kvm's mode that a VM's user falls into says whether he is excluded; no such node excludes."""
    monkeypatch.setattr(kvmnode, "HOST_NODE", tmp_path / "kvm")
    assert kvmnode.excludes(VM_USER.uid)
    kvmnode.HOST_NODE.touch()
    os.chown(kvmnode.HOST_NODE, owner, group)
    kvmnode.HOST_NODE.chmod(mode)
    assert kvmnode.excludes(VM_USER.uid) == excluded


@pytest.mark.root
@NEEDS_KVM
async def test_kvm_node_of_its_own(printed: Printed, kvm_node: None) -> None:
    """A VM's user opens /dev/kvm through a node that nobody else can reach; the host's stays as it is."""
    before = os.stat("/dev/kvm").st_mode
    script = f"exec 7<>/dev/kvm && echo opened; ls {kvmnode.DIRECTORY} 2>&1 || echo hidden"
    assert (await run(printed, script, credentials=VM_USER, kvm_node=True)).success
    assert printed.text.splitlines()[0] == "opened"
    assert printed.text.splitlines()[-1] == "hidden"
    assert os.stat("/dev/kvm").st_mode == before
    assert stat.S_IMODE(kvmnode.DIRECTORY.stat().st_mode) == 0o700


@pytest.mark.root
@NEEDS_KVM
async def test_kvm_node_is_seen_by_no_one_else(printed: Printed, kvm_node: None) -> None:
    """The thread that spawns with a node of its own ends with that: none of ours is left in its mount namespace."""
    before = namespaces()
    await run(printed, "readlink /proc/$$/ns/mnt", credentials=VM_USER, kvm_node=True)
    after = namespaces()
    assert after == before
    assert printed.text.strip() not in after


def namespaces() -> set[str]:
    """The mount namespaces of our threads; one that ends meanwhile is in none."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/task/{thread}/ns/mnt"))
    return found


@pytest.mark.root
async def test_kvm_node_that_cannot_be_mounted(
    printed: Printed, monkeypatch: pytest.MonkeyPatch, kvm_node: None
) -> None:
    """What the kernel refuses fails the spawn, in its words, and nothing runs."""
    monkeypatch.setattr(kvmnode, "hold", lambda: None)  # there is no node then
    before = children()
    with pytest.raises(StartError, match=r"could not give the VM a /dev/kvm of its own: .*No such file or directory"):
        await run(printed, "echo ran", kvm_node=True)
    assert (children(), printed.text) == (before, "")


@pytest.mark.root
@NEEDS_KVM
async def test_kvm_node_may_be_removed_under_a_vm(printed: Printed, kvm_node: None) -> None:
    """Removing the node, as a daemon does at its end, takes nothing from a running VM."""
    with trio.fail_after(10):
        started = await spawn(
            ["/bin/sh", "-c", "kill -STOP $$; exec 7<>/dev/kvm && echo opened"],
            output_fd=printed.fd,
            credentials=VM_USER,
            kvm_node=True,
        )
        await wait_until(lambda: is_stopped(started.pid), "the child has stopped itself")
        kvmnode.release()
        started.send_signal(signal.SIGCONT)
        await started.wait_exit()
        await started.aclose()
    assert printed.text == "opened\n"


@pytest.mark.root
@NEEDS_KVM
def test_kvm_node_that_a_stranger_removed_is_made_again(kvm_node: None) -> None:
    """What is held is a directory that may have gone; the next VM gets its node all the same."""
    kvmnode.hold()
    kvmnode.NODE.unlink()
    kvmnode.DIRECTORY.rmdir()
    kvmnode.hold()
    assert kvmnode.NODE.is_char_device()
    kvmnode.release()
    assert not kvmnode.DIRECTORY.exists()


OTHER_DAEMON = """
import pathlib, sys
from qsup.host import kvmnode
kvmnode.DIRECTORY = pathlib.Path(sys.argv[1])
kvmnode.NODE = kvmnode.DIRECTORY / "kvm"
kvmnode.hold()
print(flush=True)
input()
kvmnode.release()
"""


@pytest.mark.root
@NEEDS_KVM
def test_kvm_node_stays_while_another_daemon_holds_it(kvm_node: None) -> None:
    """Of two daemons, the one that ends first leaves the node to the other; the last one removes it."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OTHER_DAEMON, str(kvmnode.DIRECTORY)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        kvmnode.hold()
        kvmnode.release()
        assert kvmnode.NODE.is_char_device()
        other.communicate(b"\n", timeout=10)
    assert not kvmnode.DIRECTORY.exists()


@pytest.mark.root
@NEEDS_KVM
def test_kvm_node_of_a_killed_daemon_is_taken_over(kvm_node: None) -> None:
    """What a killed daemon left is used by the next, and removed by it whether or not it was used."""
    for next_daemon_uses_it in (True, False):
        kvmnode.DIRECTORY.mkdir(mode=0o700)
        if next_daemon_uses_it:
            kvmnode.hold()
            assert kvmnode.NODE.is_char_device()
        kvmnode.release()
        assert not kvmnode.DIRECTORY.exists()
    kvmnode.release()

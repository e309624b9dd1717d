"""A host that is shut down by systemd 252 with cgroups of version 2 alone, each VM in a scope of its own."""

from __future__ import annotations

import re

import pytest

from tests.real.hosted import HostedDaemon, rom_vm

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.slow, pytest.mark.hosted]


def test_guests_are_asked_to_shut_down_and_come_back(hosts_daemon: HostedDaemon) -> None:
    """By qsup and not by systemd, which would end QEMU as any process; what starts by itself does after the boot."""
    host = hosts_daemon.host
    hosts_daemon.unit("web", rom_vm(install="autostart = true"))
    hosts_daemon.do("web", "start")
    boot = host.read("/proc/sys/kernel/random/boot_id")
    host.reboot()
    assert host.read("/proc/sys/kernel/random/boot_id") != boot
    hosts_daemon.wait("web", "running")
    assert host.property("qsup-web.scope", "ActiveState") == "active"
    told = host.run("journalctl", "--boot=-1", "-u", "qsupd", "QSUP_INSTANCE=web", "--output=cat")
    states = re.findall(r"state changed .*\bstate=([\w-]+)", told)
    assert states[-3:] == ["stopping-guest", "stopping-quit", "dead"]

"""The port forwards of a NIC, changed without a QEMU: in which order, and that a failure leaves them as they were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from qsup.errors import ChangeError
from qsup.instance.context import Context
from qsup.instance.live.nics import NicKeys
from qsup.unit.compare import compare
from qsup.unit.kinds import FORWARD
from qsup.unit.model import Unit
from qsup.unit.sections.devices import NicSection


class Vm:
    """A VM with one NIC, whose monitor binds host ports as QEMU does.

    Args:
        fails: a line that QEMU answers with words.
    """

    def __init__(self, *forward: str, fails: str = "") -> None:
        self.unit = with_forwards(*forward)
        self.fails = fails
        self.lines: list[str] = []
        self.bound = {f"{each.protocol}:{each.host_address}:{each.host_port}" for each in self.unit.nics[0].forward}
        self.summary = SimpleNamespace(nics=())

    def check_there(self, entry: str) -> None:
        """It is."""
        assert entry == "nic.lan"

    async def execute(self, command: str, arguments: Any = None, **_: Any) -> str:
        """The human monitor's ``hostfwd_add`` and ``hostfwd_remove``."""
        assert command == "human-monitor-command"
        line = arguments["command-line"]
        self.lines.append(line)
        verb, _, rule = line.split()
        host = rule.partition("-")[0]
        if line == self.fails or (verb == "hostfwd_add" and host in self.bound):
            return "could not set up host forwarding rule"
        if verb == "hostfwd_add":
            self.bound.add(host)
            return ""
        self.bound.discard(host)
        return "host forwarding rule for it removed"

    async def change(self, *forward: str) -> None:
        """Have it forward these."""
        context = cast("Context", SimpleNamespace(hardware=self, monitor=self))
        unit, keys = with_forwards(*forward), NicKeys()
        (change,) = compare(self.unit, unit)
        keys.check(change, unit, context)
        await keys.apply([change], unit, context)


def with_forwards(*forward: str) -> Unit:
    """A unit with one NIC."""
    return Unit(nics=(NicSection(id="lan", type="user", forward=tuple(map(FORWARD.parse, forward))),))


async def test_a_host_port_may_lead_elsewhere() -> None:
    """The VM has that port itself: what had it goes first. Nothing else is interrupted."""
    vm = Vm("24001:22", "24002:80", "24003:443")
    await vm.change("24001:22", "24002:81", "24004:443")
    assert vm.lines == [
        "hostfwd_remove nic-lan tcp:127.0.0.1:24002",
        "hostfwd_add nic-lan tcp:127.0.0.1:24002-:81",
        "hostfwd_add nic-lan tcp:127.0.0.1:24004-:443",
        "hostfwd_remove nic-lan tcp:127.0.0.1:24003",
    ]


@pytest.mark.parametrize(
    "fails", ["hostfwd_add nic-lan tcp:127.0.0.1:24004-:443", "hostfwd_remove nic-lan tcp:127.0.0.1:24003"]
)
async def test_a_forward_that_fails_takes_none_along(fails: str) -> None:
    """What came goes, and what went comes back."""
    vm = Vm("24001:22", "24002:80", "24003:443", fails=fails)
    before = set(vm.bound)
    with pytest.raises(ChangeError, match="QEMU"):
        await vm.change("24001:22", "24002:81", "24004:443")
    assert vm.bound == before
    assert vm.lines[-1] == "hostfwd_add nic-lan tcp:127.0.0.1:24002-:80"

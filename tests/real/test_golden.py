"""Every golden unit starts, paused, on every real QEMU, or names what this host lacks for it."""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from attrs import evolve

from qsup.host.facts import find_firmware
from qsup.instance.probe import probe_binary
from qsup.plan.spec import Capabilities, HostFacts, Plan
from tests.guests import Emulator
from tests.plan import goldens
from tests.plan.goldens import Golden
from tests.real.planned import Paused, obstacle, paused

WORKERS = 2
# a nested or para-virtual KVM does not have all that the oldest CPU model promises
EXPECTED = re.compile(r"warning: host doesn't support requested feature")


@pytest.mark.user
def test_every_golden_starts(root_dir: Path, qemu: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """QEMU takes the command line of each golden unit and of each example without a word, and has what was planned."""
    capabilities = trio.run(probe_binary, str(qemu.path))
    golden = [goldens.load(name) for name in goldens.names()]
    golden += [goldens.load_example(name) for name in goldens.example_names()]
    missing = {each.name: [why for word in each.needs if (why := obstacle(word))] for each in golden}
    startable = [each for each in golden if not missing[each.name]]
    with ThreadPoolExecutor(WORKERS) as pool:
        said = pool.map(lambda each: start(each, root_dir, qemu, capabilities), startable)
        failed = {each.name: words for each, words in zip(startable, said, strict=True) if words}
    with capsys.disabled():
        for name, reasons in missing.items():
            if reasons:
                print(f"\n{qemu}: {name} not started: {', '.join(reasons)}", end="")
    assert not failed, "\n".join(f"{name}: {words}" for name, words in failed.items())
    assert len(startable) > len(golden) / 2


def start(golden: Golden, directory: Path, qemu: Emulator, capabilities: Capabilities) -> str:
    """Start one golden and look at it; return what is wrong, or ``""``."""
    place = Path(tempfile.mkdtemp(prefix=f"{golden.name}-", dir=directory))
    plan = golden.plan(capabilities, host=real_host(golden), state_dir=str(place))
    try:
        with paused(plan, place, qemu) as started:
            inspect(plan, started)
            started.monitor.write('{"execute": "quit"}')
            status = started.process.wait(30)
        words = [line for line in started.errors.read_text().splitlines() if not EXPECTED.search(line)]
        assert not status and not words, f"exit {status}: {words}"
    except AssertionError as error:
        return str(error)
    return ""


def real_host(golden: Golden) -> HostFacts:
    """The facts that the golden is planned with, but for the firmware, which is this host's."""
    return evolve(goldens.HOSTS[golden.host], firmware=find_firmware([Path("/usr/share/qemu/firmware")]))


def inspect(plan: Plan, started: Paused) -> None:
    """Compare what QEMU has with the plan."""
    ask = started.monitor.ask
    assert ask("query-status")["status"] == "prelaunch"
    assert ask("query-name")["name"] == "golden"
    kvm = ask("query-kvm")
    assert kvm["enabled"] == (plan.accel == "kvm")
    assert ask("qom-get", {"path": "/machine", "property": "type"}) == f"{plan.machine}-machine"
    nodes = {node["node-name"]: node for node in ask("query-named-block-nodes")}
    drives = {drive["qdev"]: drive for drive in ask("query-block") if "qdev" in drive}
    for disk in plan.disks:
        at = next((drives[path] for path in drives if disk.device in path.split("/")), None)
        assert at, f"no device {disk.device} in {list(drives)}"
        if disk.node:
            assert at["inserted"]["node-name"] == disk.node
            assert nodes[disk.node]["drv"] == disk.format
            assert nodes[disk.node]["ro"] == disk.read_only
        else:
            assert "inserted" not in at
    for nic in plan.nics:
        path = f"/machine/peripheral/nic-{nic.id}"
        assert ask("qom-get", {"path": path, "property": "mac"}) == nic.mac
    ports = {chardev["label"] for chardev in ask("query-chardev")}
    wanted = {"qmp": True, "console": plan.has_console, "agent": plan.has_agent}
    assert ports >= {name for name, there in wanted.items() if there}


@pytest.mark.user
def test_recorded_answers_are_true(qemu: Emulator) -> None:
    """Plans made with the recorded answers of a QEMU are those made with the real one's."""
    recorded = "qemu-" + ".".join(qemu.version.split(".")[:2])
    if recorded not in goldens.recorded():
        return  # a QEMU that nobody recorded has nothing to contradict
    said = trio.run(probe_binary, str(qemu.path))
    for name in goldens.names():
        golden = goldens.load(name)
        expected = golden.plan(goldens.capabilities(recorded))
        assert evolve(golden.plan(said), emulator=expected.emulator) == expected, name

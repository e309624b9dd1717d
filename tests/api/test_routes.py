"""Every route once, over a real socket; each answer is checked against the OpenAPI document on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve, frozen

from qsup.api.routes.endpoint import Endpoint
from qsup.api.routes.table import ENDPOINTS
from qsup.errors import Diagnostic
from qsup.instance.state import State
from tests.api.calling import daemon
from tests.api.fake import UNIT_TEXT


@frozen(kw_only=True)
class Example:
    """One request and the status of its answer."""

    target: str
    status: int = 200
    body: object = None


WEB = "/v1/instances/web"
EXAMPLES = {
    "getRoot": Example(target="/"),
    "getApiRoot": Example(target="/v1"),
    "getHealth": Example(target="/v1/health"),
    "getWhoami": Example(target="/v1/whoami"),
    "getOpenapi": Example(target="/v1/openapi.json"),
    "getUnitSchema": Example(target="/v1/schemas/unit.json"),
    "getMetrics": Example(target="/metrics"),
    "getTopology": Example(target="/v1/topology"),
    "getCapacity": Example(target="/v1/capacity"),
    "listUnits": Example(target="/v1/units"),
    "getUnit": Example(target="/v1/units/web"),
    "putUnit": Example(target="/v1/units/new", status=201, body=UNIT_TEXT),
    "previewUnit": Example(target="/v1/units/web/preview?drop-in=80-local.toml", body=UNIT_TEXT),
    "deleteUnit": Example(target="/v1/units/old", status=204),
    "getUnitFiles": Example(target="/v1/units/web/files"),
    "validateUnit": Example(target="/v1/units/validate", body={"name": "x", "text": "bogus"}),
    "validateHost": Example(target="/v1/units/validate-host", body={"units": [{"name": "x", "values": {}}]}),
    "reloadUnits": Example(target="/v1/reload"),
    "enableUnit": Example(target="/v1/units/web/enable"),
    "disableUnit": Example(target="/v1/units/web/disable"),
    "listInstances": Example(target="/v1/instances"),
    "listDependencies": Example(target="/v1/dependencies"),
    "getInstance": Example(target=WEB),
    "getInstanceStats": Example(target=f"{WEB}/stats"),
    "getInstanceMemory": Example(target=f"{WEB}/memory"),
    "getInstanceCpus": Example(target=f"{WEB}/cpus"),
    "getInstanceCommandLine": Example(target=f"{WEB}/cmdline"),
    "diffInstance": Example(target=f"{WEB}/diff"),
    "startInstance": Example(target=f"{WEB}/start", status=202),
    "stopInstance": Example(target=f"{WEB}/stop?wait=5", body={"timeout": 20}),
    "restartInstance": Example(target=f"{WEB}/restart", status=202),
    "killInstance": Example(target=f"{WEB}/kill", status=202),
    "pauseInstance": Example(target=f"{WEB}/pause?wait=0"),
    "resumeInstance": Example(target=f"{WEB}/resume", status=202),
    "resetInstance": Example(target=f"{WEB}/reset", status=202),
    "powerdownInstance": Example(target=f"{WEB}/powerdown", status=202),
    "nmiInstance": Example(target=f"{WEB}/nmi", status=202),
    "resetFailedInstance": Example(target=f"{WEB}/reset-failed", status=202),
    "listDevices": Example(target=f"{WEB}/devices"),
    "listDisks": Example(target=f"{WEB}/disks"),
    "getDisk": Example(target=f"{WEB}/disks/root"),
    "listNics": Example(target=f"{WEB}/nics"),
    "getNic": Example(target=f"{WEB}/nics/lan"),
    "getDevice": Example(target=f"{WEB}/devices/rng0"),
    "changeInstance": Example(target=WEB, status=202, body={"changes": {"cpu": {"vcpus": 4}}}),
    "applyUnit": Example(target=f"{WEB}/apply", status=202),
    "attachDisk": Example(target=f"{WEB}/disks", status=202, body={"id": "data", "path": "data.img"}),
    "resizeDisk": Example(target=f"{WEB}/disks/data", status=202, body={"size": "20G"}),
    "insertMedium": Example(target=f"{WEB}/disks/cd/insert", status=202, body={"path": "a.iso", "force": True}),
    "ejectMedium": Example(target=f"{WEB}/disks/cd/eject", status=202),
    "detachDisk": Example(target=f"{WEB}/disks/data?force-after=5", status=202),
    "attachNic": Example(target=f"{WEB}/nics", status=202, body={"id": "dmz"}),
    "detachNic": Example(target=f"{WEB}/nics/dmz", status=202),
    "attachDevice": Example(target=f"{WEB}/devices", status=202, body={"id": "random", "type": "rng"}),
    "detachDevice": Example(target=f"{WEB}/devices/random", status=202),
    "startInstances": Example(target="/v1/start", status=202, body={"names": ["web", "gone", "db"]}),
    "stopInstances": Example(target="/v1/stop?wait=5", body={"names": ["web", "db"], "timeout": 20}),
    "restartInstances": Example(target="/v1/restart", body={"names": ["gone", "../x"]}),
    "stopAll": Example(target="/v1/stop-all?wait=5", body={"timeout": 20}),
    "getInstanceLog": Example(target=f"{WEB}/log?lines=2"),
    "getInstanceScreenshot": Example(target=f"{WEB}/screenshot"),
    "attachConsole": Example(target=f"{WEB}/console", status=426),
    "attachVnc": Example(target=f"{WEB}/vnc", status=426),
    "executeQmp": Example(target=f"{WEB}/qmp", body={"execute": "query-status"}),
    "callAgent": Example(target=f"{WEB}/agent", body={"command": "ping"}),
    "listOperations": Example(target="/v1/operations"),
    "getOperation": Example(target=f"/v1/operations/{'0' * 32}", status=404),
    "cancelOperation": Example(target=f"/v1/operations/{'0' * 32}", status=404),
    "waitOperation": Example(target=f"/v1/operations/{'0' * 32}/wait?timeout=1", status=404),
    "listenEvents": Example(target="/v1/events?since=9", status=410),
}


def test_every_route_has_an_example() -> None:
    """No route is left out of the test below."""
    assert EXAMPLES.keys() == {endpoint.id for endpoint in ENDPOINTS}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.id)
async def test_route_answers_as_documented(tmp_path: Path, endpoint: Endpoint) -> None:
    """A request of each kind gets the status expected, and an answer of the documented shape."""
    example = EXAMPLES[endpoint.id]
    async with daemon(tmp_path, "db", "old", "web") as qsupd:
        qsupd.backend.views["old"] = evolve(qsupd.backend.views["old"], state=State.DEAD, pid=None)
        qsupd.backend.diagnostics = (Diagnostic("/etc/qsup/units/bad.toml", 3, "cpu", "unknown key"),)
        caller = await qsupd.connect()
        reply = await caller.call(endpoint.method, example.target, body=example.body)
    assert reply.status == example.status


@pytest.mark.parametrize(
    "name", ["..", "a/b", "-a", "a\nb", "a\0b", ".", "a b", "x" * 49, "web@", "@web", "a@b@c", "ä", "%", "*"]
)
@pytest.mark.parametrize("path", ["/v1/instances/{}", "/v1/instances/{}/log", "/v1/units/{}", "/v1/operations/{}"])
async def test_hostile_names_are_not_found(tmp_path: Path, path: str, name: str) -> None:
    """What can be no name is answered like a name that does not exist, and never reaches the supervisor."""
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).get(path.format(quoted))
    assert reply.status == 404
    assert reply.code in ("no-such-instance", "no-such-unit", "no-such-operation")
    assert len(reply.body) < 600


async def test_what_can_be_no_name_is_told_the_rule(tmp_path: Path) -> None:
    """A template's name is told from one that breaks the rule."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        template = await caller.get("/v1/instances/dev@")
        wrong = await caller.get("/v1/instances/-x")
    assert "dev@1" in str(template.json()["hint"])
    assert "starting with a letter or digit" in str(wrong.json()["hint"])


async def test_unknown_query_parameters_are_refused(tmp_path: Path) -> None:
    """A parameter that a route does not have is an error with a suggestion, on routes without any too."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        misspelt = await caller.get("/v1/instances?limitt=3")
        superfluous = await caller.get("/v1/instances/web?verbose=1")
    assert misspelt.status == superfluous.status == 400
    assert misspelt.json()["detail"] == "unknown query parameter 'limitt'; did you mean 'limit'?"


async def test_head_has_no_body(tmp_path: Path) -> None:
    """HEAD of a document says how long its GET would be."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        whole = await caller.get("/v1/instances/web")
        await caller.client.send(b"HEAD /v1/instances/web HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await caller.client.reply("HEAD")
    assert head.body == b""
    assert head.headers["content-length"] == str(len(whole.body))

"""Units over a real socket: versions, diagnostics, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from qsup.errors import Diagnostic
from tests.api.calling import daemon
from tests.api.fake import UNIT_TEXT, make_unit


async def test_units_are_listed_without_their_text(tmp_path: Path) -> None:
    """The list is short, and names what is wrong with other files; one unit is shown whole, with its ETag."""
    async with daemon(tmp_path, "db", "web") as qsupd:
        qsupd.backend.diagnostics = (Diagnostic("/etc/qsup/units/bad.toml", 3, "cpu.vcpu", "unknown key"),)
        caller = await qsupd.connect()
        listed: dict[str, Any] = (await caller.get("/v1/units?limit=1")).json()
        shown = await caller.get("/v1/units/web")
    assert [unit["name"] for unit in listed["units"]] == ["db"]
    assert listed["next"] == "db"
    assert "text" not in listed["units"][0]
    assert listed["diagnostics"][0]["line"] == 3
    assert shown.headers["etag"] == f'"{shown.json()["etag"]}"'
    assert shown.json()["unit"] == {"machine": {"type": "q35"}}


async def test_a_unit_is_created_changed_and_removed(tmp_path: Path) -> None:
    """PUT answers 201 for a new unit and 200 for a known one, DELETE 204; then it is gone."""
    async with daemon(tmp_path) as qsupd:
        caller = await qsupd.connect()
        created = await caller.call("PUT", "/v1/units/new", body=UNIT_TEXT)
        changed = await caller.call("PUT", "/v1/units/new", body='description = "ä"\n')
        removed = await caller.call("DELETE", "/v1/units/new")
        gone = await caller.get("/v1/units/new")
    assert (created.status, created.headers["location"]) == (201, "/v1/units/new")
    assert (changed.status, removed.status, gone.code) == (200, 204, "no-such-unit")
    assert changed.headers["etag"] != created.headers["etag"]
    assert "ä" in str(changed.json()["text"])


async def test_if_match_protects_what_somebody_else_wrote(tmp_path: Path) -> None:
    """A change of another version than the one meant is 412, and changes nothing."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.views.clear()
        caller = await qsupd.connect()
        etag = (await caller.get("/v1/units/web")).headers["etag"]
        stale = await caller.call("PUT", "/v1/units/web", 'If-Match: "old"', body="x = 1\n")
        stale_delete = await caller.call("DELETE", "/v1/units/web", 'If-Match: "old"')
        kept = await caller.get("/v1/units/web")
        meant = await caller.call("PUT", "/v1/units/web", f"If-Match: {etag}", body="x = 1\n")
        among = await caller.call(
            "PUT", "/v1/units/web", f'If-Match: W/"b", "a,c" ,{meant.headers["etag"]}', body="x\n"
        )
        weak = await caller.call("DELETE", "/v1/units/web", f"If-Match: W/{among.headers['etag']}")
        any_version = await caller.call("DELETE", "/v1/units/web", "If-Match: *")
        none_there = await caller.call("PUT", "/v1/units/web", "If-Match: *", body="x = 1\n")
    assert [reply.code for reply in (stale, stale_delete, weak, none_there)] == ["precondition-failed"] * 4
    assert kept.headers["etag"] == etag
    assert (meant.status, among.status, any_version.status) == (200, 200, 204)


async def test_if_none_match_writes_only_what_is_new(tmp_path: Path) -> None:
    """``*`` is 412 where the unit is there already."""
    async with daemon(tmp_path, "web") as qsupd:
        caller = await qsupd.connect()
        known, new = [
            await caller.call("PUT", f"/v1/units/{name}", "If-None-Match: *", body="x = 1\n") for name in ("web", "new")
        ]
        contradiction = await caller.call("PUT", "/v1/units/new", 'If-Match: "a"', "If-None-Match: *", body="x = 1\n")
    assert (known.status, new.status, contradiction.status) == (412, 201, 412)


@pytest.mark.parametrize(
    "header",
    [
        "If-Match:",
        "If-Match: abc",
        'If-Match: "a" "b"',
        'If-Match: "',
        'If-Match: *, "a"',
        'If-Match: w/"a"',
        'If-None-Match: "a"',
    ],
)
async def test_what_is_no_precondition_is_refused(tmp_path: Path, header: str) -> None:
    """It is not ignored, whoever sent it meant to be careful."""
    async with daemon(tmp_path, "web") as qsupd:
        reply = await (await qsupd.connect()).call("PUT", "/v1/units/web", header, body="x = 1\n")
    assert (reply.status, reply.code) == (400, "bad-request")


async def test_a_wrong_unit_is_not_written(tmp_path: Path) -> None:
    """Errors come as diagnostics with file, line and key, from PUT as 422, from validate as a plain answer."""
    async with daemon(tmp_path) as qsupd:
        caller = await qsupd.connect()
        refused = await caller.call("PUT", "/v1/units/web", body="bogus = 1\n")
        checked = await caller.post("/v1/units/validate", {"name": "web", "text": "bogus = 1\n"})
        fine = await caller.post("/v1/units/validate", {"name": "web@", "text": UNIT_TEXT})
        assert not qsupd.backend.units_by_name
    assert (refused.status, refused.code) == (422, "unit-invalid")
    assert refused.json()["diagnostics"] == checked.json()["diagnostics"]
    assert fine.json() == {"diagnostics": []}


async def test_a_unit_text_is_utf8(tmp_path: Path) -> None:
    """Bytes that are no text are refused before anybody parses them."""
    async with daemon(tmp_path) as qsupd:
        reply = await (await qsupd.connect()).call("PUT", "/v1/units/web", body=b"a = '\xff'\n")
    assert (reply.status, reply.code) == (400, "bad-request")
    assert "byte 5" in str(reply.json()["detail"])


@pytest.mark.parametrize("name", ["-x", "a%2Fb", "%2E%2E", "a@b@", "@", "a%0Ab", "x" * 49])
async def test_a_new_unit_needs_a_proper_name(tmp_path: Path, name: str) -> None:
    """PUT to what can be no name is malformed, not missing."""
    async with daemon(tmp_path) as qsupd:
        caller = await qsupd.connect()
        put = await caller.call("PUT", f"/v1/units/{name}", body=UNIT_TEXT)
        assert not qsupd.backend.units_by_name
    assert (put.status, put.code) == (400, "bad-request")


async def test_templates_and_units_named_like_routes_are_units(tmp_path: Path) -> None:
    """``web@`` is a unit, and so is one that is called ``validate``."""
    async with daemon(tmp_path) as qsupd:
        qsupd.backend.units_by_name = {name: make_unit(name) for name in ("validate", "web@")}
        caller = await qsupd.connect()
        shown = [(await caller.get(f"/v1/units/{name}")).json() for name in ("validate", "web@")]
    assert [(unit["name"], unit["template"]) for unit in shown] == [("validate", False), ("web@", True)]


async def test_units_are_enabled_and_disabled(tmp_path: Path) -> None:
    """Both answer with the unit as it is then; a template is refused."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.units_by_name["web@"] = make_unit("web@")
        caller = await qsupd.connect()
        on, off = await caller.post("/v1/units/web/enable"), await caller.post("/v1/units/web/disable")
        unknown, template = [await caller.post(f"/v1/units/{name}/enable") for name in ("nobody", "web@")]
    assert (on.json()["autostart"], off.json()["autostart"]) == (True, False)
    assert (unknown.code, template.code) == ("no-such-unit", "bad-request")


async def test_a_unit_without_values_is_shown_without_them(tmp_path: Path) -> None:
    """What the supervisor could not compute is left out, not null."""
    async with daemon(tmp_path, "web") as qsupd:
        qsupd.backend.units_by_name["web"] = evolve(qsupd.backend.units_by_name["web"], values=None)
        reply = await (await qsupd.connect()).get("/v1/units/web")
    assert "unit" not in reply.json()


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/toml", 201),
        ("Application/TOML; charset=utf-8", 201),
        ("text/plain", 201),
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_unit_is_toml(tmp_path: Path, media: str, status: int) -> None:
    """What is said to be something else is refused by that, and not by what its first line is to TOML."""
    async with daemon(tmp_path) as qsupd:
        caller = await qsupd.connect()
        reply = await caller.call("PUT", "/v1/units/web", f"Content-Type: {media}", body="x = 1\n")
    assert reply.status == status
    if status == 415:
        assert (reply.code, reply.json()["hint"]) == (
            "unsupported-media",
            "send it with Content-Type: application/toml",
        )


async def test_a_unit_is_previewed(tmp_path: Path) -> None:
    """Judged as a PUT of the same would be, and nothing is written."""
    async with daemon(tmp_path, "web") as qsupd:
        said = {"cpu.vcpus": {"applied": "start", "old": 1, "new": 2, "why": "so"}}
        qsupd.backend.previews["web"] = said
        before, caller = qsupd.backend.unit_sources("web"), await qsupd.connect()
        target = "/v1/units/web/preview"
        reply = await caller.call("POST", target, f'If-Match: "{before.etag}"', body="# new\n")
        assert reply.json() == {"name": "web", "running": True, "keys": said}
        assert (await caller.call("POST", target, 'If-Match: "other"', body="# new\n")).status == 412
        wrong = await caller.call("POST", target, body="bogus")
        assert (wrong.status, wrong.json()["code"]) == (422, "unit-invalid")
        assert (await caller.call("POST", f"{target}?drop-in=../x.toml", body="# new\n")).status == 400
        assert qsupd.backend.unit_sources("web") == before

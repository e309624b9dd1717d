"""The route table itself: what is declared, and for whom."""

from __future__ import annotations

import pytest

from qsup.api.message import Answer
from qsup.api.protocol import ORDERED_VERBS, POWER_VERBS
from qsup.api.roles import Role
from qsup.api.routes.endpoint import Call, Endpoint, Reply
from qsup.api.routes.power import operation_id
from qsup.api.routes.table import ENDPOINTS
from qsup.instance.state import CHANGES, Request

BY_ID = {endpoint.id: endpoint for endpoint in ENDPOINTS}


async def _nothing(call: Call) -> Answer:
    raise NotImplementedError


def test_a_route_without_a_role_cannot_be_declared() -> None:
    """An endpoint names its role, or it is none."""
    with pytest.raises(TypeError):
        Endpoint(id="x", method="GET", pattern="/x", handler=_nothing, summary="x", replies=(Reply(),))  # type: ignore[call-arg]  # the missing role is what is tested
    with pytest.raises(TypeError):
        Endpoint(id="x", method="GET", pattern="/x", handler=_nothing, summary="x", replies=(), role="read")  # type: ignore[arg-type]  # a word is no role


def test_operation_ids_are_unique() -> None:
    """Clients are generated with one function for each operation id."""
    assert len(BY_ID) == len(ENDPOINTS)


def test_every_power_verb_is_a_route() -> None:
    """The verbs of the protocol, of the state table and of the routes are the same; changes have nouns of their own."""
    assert set(POWER_VERBS) == {request.value for request in Request if request not in CHANGES}
    assert set(map(operation_id, POWER_VERBS)) <= BY_ID.keys()
    assert {f"{verb}Instances" for verb in ORDERED_VERBS} <= BY_ID.keys()


def test_readers_change_nothing_and_see_no_screen() -> None:
    """What only a reader may do is a GET of what the supervisor knows, or a check that keeps nothing."""
    readers = {endpoint.id for endpoint in ENDPOINTS if endpoint.role is Role.READ}
    assert {BY_ID[name].method for name in readers - {"validateUnit"}} == {"GET"}
    assert not readers & {"attachConsole", "attachVnc", "getInstanceScreenshot", "callAgent", "executeQmp"}


def test_administrators_alone_reach_files_and_qmp() -> None:
    """What writes unit files, or reaches into QEMU, takes an administrator."""
    admins = {endpoint.id for endpoint in ENDPOINTS if endpoint.role is Role.ADMIN}
    changing = {f"{verb}{noun}" for verb in ("attach", "detach") for noun in ("Disk", "Nic", "Device")}
    changing |= {"changeInstance", "applyUnit", "resizeDisk", "insertMedium", "ejectMedium"}
    changing |= {"putUnit", "previewUnit", "deleteUnit", "enableUnit", "disableUnit"}
    assert admins == {"executeQmp", "validateHost", *changing}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.id)
def test_a_declaration_is_complete(endpoint: Endpoint) -> None:
    """Every endpoint has words for people, an answer, and problems whose statuses differ from its answers'."""
    assert endpoint.summary
    assert not endpoint.summary.endswith(".")
    assert all(reply.doc.endswith(".") for reply in endpoint.replies)
    assert {reply.status for reply in endpoint.replies}.isdisjoint(endpoint.problems())

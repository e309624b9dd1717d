"""Who may do what: the one table of roles. Pure.

Decides: which role a caller has, and whether it suffices.
Must not: read credentials, know routes, or grant anything by default.
"""

from __future__ import annotations

import enum
from collections.abc import Set
from typing import TYPE_CHECKING

from attrs import frozen

from qsup.errors import ForbiddenError

if TYPE_CHECKING:
    from qsup.api.peer import Peer  # its module opens sockets


class Role(enum.IntEnum):
    """What a caller may do; each role includes those before it."""

    READ = 1
    OPERATE = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """The role's name in the API: ``read``, ``operate`` or ``admin``."""
        return self.name.lower()


@frozen(kw_only=True)
class Policy:
    """To whom the roles belong, besides root.

    Args:
        daemon_uid: the daemon's own user; administers.
        operate_gids: groups whose members operate.
        read_gids: groups whose members read.
    """

    daemon_uid: int
    operate_gids: frozenset[int] = frozenset()
    read_gids: frozenset[int] = frozenset()


def role_of(peer: Peer, *, daemon_uid: int, operate_gids: Set[int], read_gids: Set[int] = frozenset()) -> Role | None:
    """The caller's role, ``None`` for a stranger.

    A primary group counts as membership: ``newgrp qsup`` works.
    """
    if peer.uid in (0, daemon_uid):
        return Role.ADMIN
    gids = peer.groups | {peer.gid}
    if not gids.isdisjoint(operate_gids):
        return Role.OPERATE
    if not gids.isdisjoint(read_gids):
        return Role.READ
    return None


def decide(needed: Role, peer: Peer, policy: Policy) -> ForbiddenError | None:
    """``None`` when the caller may, else the named denial (to be answered, or raised)."""
    role = role_of(peer, daemon_uid=policy.daemon_uid, operate_gids=policy.operate_gids, read_gids=policy.read_gids)
    if role is not None and role >= needed:
        return None
    has = f"has the role {role.label}" if role is not None else "has no role here"
    return ForbiddenError(
        f"this needs the role {needed.label}, and uid {peer.uid} {has}",
        hint="root and the daemon's own user administer; members of `operate-group`, qsup unless configured, operate",
        required=needed.label,
        role=role.label if role is not None else None,
    )

"""What the daemon decides before it begins."""

from __future__ import annotations

import grp

from qsup.daemon import operate_gids


def test_a_group_operates_the_vms_of_roots_daemon_alone() -> None:
    """Members operate where root runs the daemon; a user's VMs are the user's own, whatever groups there are."""
    group = grp.getgrall()[0]
    assert operate_gids(group.gr_name, uid=0) == {group.gr_gid}
    assert operate_gids(group.gr_name, uid=1000) == frozenset()
    assert operate_gids("no such group", uid=0) == frozenset()

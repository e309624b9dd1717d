"""Names and addresses that are derived, so that they are the same at each start without being stored.

Decides: how a NIC's MAC address and a block node's name are made.
Must not: use anything but what is passed in: no clock, no randomness, no host name.
"""

from __future__ import annotations

import hashlib

#: Longest name of a block node (``sizeof(bs->node_name) - 1`` in QEMU's block layer).
NODE_NAME_LIMIT = 31
_DIGEST = 8


def derive_mac(uuid: str, nic: str) -> str:
    """The MAC address of a NIC that names none.

    Locally administered and unicast (IEEE 802c): 52, as QEMU's own addresses start, and 40 bits of a hash. With the
    24 bits that QEMU's usual prefix 52:54:00 leaves, one network of 1,000 NICs would clash once in 34.

    Args:
        uuid: the VM's UUID.
        nic: the NIC's id.
    """
    digest = hashlib.sha256(f"{uuid.lower()}/{nic}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x52" + digest[:5])


def node_name(kind: str, name: str) -> str:
    """A block node's name: ``KIND-NAME``, its end hashed where that is too long.

    Args:
        kind: what the node is, without ``-``, so that the nodes of one disk never clash with those of another.
        name: the disk's id.
    """
    whole = f"{kind}-{name}"
    if len(whole) <= NODE_NAME_LIMIT:
        return whole
    digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]
    return f"{whole[: NODE_NAME_LIMIT - _DIGEST - 1]}-{digest}"

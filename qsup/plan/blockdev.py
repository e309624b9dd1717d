"""Block nodes: the images of a disk, by descriptor, and the formats on them.

Decides: how an image reaches QEMU, and how caching, discarding and backing files are said to its block layer.
Must not: open, probe or create an image, or let QEMU open one by its path.

An image is opened by the daemon and reaches QEMU as a member of a descriptor set: the node's file name is
``/dev/fdset/K``. A writable one is there twice, read-write and read-only, because QEMU picks by access mode when it
reopens. Each image is two nodes, the file and the format on it; a backing chain is spelled out node by node down to
``"backing": null``, so QEMU never follows a name that an image holds. (QAPI ``BlockdevOptions``.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import frozen

from qsup.plan.identity import node_name
from qsup.plan.part import Backend, Properties
from qsup.plan.spec import ImageFd
from qsup.unit.sections.disks import DiskSection

_BLOCK_DEVICE = re.compile(r"/dev/(?!shm/).+")
#: cache mode -> (cache.direct, cache.no-flush); the third column of qemu-system-x86_64(1), ``-drive cache=``, is the
#: device's (`qsup.plan.disks`).
_CACHE = {
    "writeback": (False, False),
    "none": (True, False),
    "writethrough": (False, False),
    "directsync": (True, False),
    "unsafe": (False, True),
}


def is_block_device_path(path: str) -> bool:
    """Whether a disk's path means a block device, which QEMU opens with another driver than a file."""
    return _BLOCK_DEVICE.fullmatch(path) is not None


def is_read_only(disk: DiskSection) -> bool:
    """Whether neither guest nor QEMU writes to the image."""
    return disk.read_only or disk.type == "cdrom"


@frozen(kw_only=True)
class Image:
    """One image of a chain.

    Args:
        request: its descriptors.
        fdset: the number of its descriptor set.
        node: name of the format node.
        file_node: name of the file node below it.
    """

    request: ImageFd
    fdset: int
    node: str
    file_node: str

    def descriptors(self) -> tuple[Backend, ...]:
        """Its descriptor set, a member each."""
        names = (self.request.name, f"{self.request.name}:ro") if self.request.writable else (self.request.name,)
        return tuple(Backend(kind="fdset", properties={"fdset-id": self.fdset}, fd=name) for name in names)

    def file(self, **properties: object) -> Properties:
        """The node of the file itself, to be added first."""
        return {
            "driver": "host_device" if self.request.block_device else "file",
            "node-name": self.file_node,
            "filename": f"/dev/fdset/{self.fdset}",
            "read-only": not self.request.writable,
            **properties,
        }

    def format(self, *, below: str | None = None, **properties: object) -> Properties:
        """The node that reads the format.

        Args:
            below: name of the backing file's node, ``None`` for no backing file.
        """
        return {
            "driver": self.request.format,
            "node-name": self.node,
            "file": self.file_node,
            "read-only": not self.request.writable,
            **({} if self.request.format == "raw" else {"backing": below}),
            **properties,
        }


def image_chain(disk: DiskSection, fdsets: Iterator[int], *, spare: bool = False) -> tuple[Image, ...]:
    """The disk's image and the declared files below it, nearest first; none for an empty drive.

    Args:
        fdsets: numbers of descriptor sets not used yet.
        spare: call the nodes so that they can be beside those of the drive's present medium.
    """
    files = [(disk.path, disk.format), *((backing.path, backing.format) for backing in disk.backing)]
    if not disk.path:
        return ()
    mark = ".spare" if spare else ""
    return tuple(
        Image(
            request=_request(disk, depth, files),
            fdset=next(fdsets),
            node=node_name((f"base{depth}" if depth else "disk") + mark, disk.id),
            file_node=node_name((f"basefile{depth}" if depth else "file") + mark, disk.id),
        )
        for depth in range(len(files))
    )


def _request(disk: DiskSection, depth: int, files: Sequence[tuple[str, str]]) -> ImageFd:
    path, format_ = files[depth]
    writable = depth == 0 and not is_read_only(disk)
    return ImageFd(
        name=f"base{depth}-{disk.id}" if depth else f"disk-{disk.id}",
        path=path,
        format=format_,
        writable=writable,
        claim_write=writable,
        shareable=disk.shareable and depth == 0,
        backing=files[depth + 1] if depth + 1 < len(files) else None,
        block_device=is_block_device_path(path),
        direct=_CACHE[disk.cache][0],
        entry=f"disk.{disk.id}",
    )


def chain_nodes(disk: DiskSection, chain: Sequence[Image]) -> list[Properties]:
    """All block nodes of a disk, backing files first, since a node's children must be there before it."""
    direct, no_flush = _CACHE[disk.cache]
    cache = {"cache": {"direct": direct, "no-flush": no_flush}}
    nodes: list[Properties] = []
    below: str | None = None
    for image in reversed(chain):
        discard = {"discard": disk.discard} if image.request.writable else {}
        zeroes = {"detect-zeroes": disk.detect_zeroes} if discard and disk.detect_zeroes != "off" else {}
        nodes.append(image.file(aio=disk.aio, **cache, **discard))
        nodes.append(image.format(below=below, **cache, **discard, **zeroes))
        below = image.node
    return nodes


def image_backends(nodes: Sequence[Properties], *images: Image) -> tuple[Backend, ...]:
    """What images and the nodes on them are to QEMU: descriptors first."""
    members = [member for image in images for member in image.descriptors()]
    return (*members, *(Backend(kind="blockdev", properties=node) for node in nodes))

"""Opening the images that a VM is to have, at its start or later.

Decides: that each is opened afresh, checked, and claimed before QEMU gets it.
Must not: keep a descriptor: whoever asked closes them once QEMU has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qsup.errors import ImageError
from qsup.host.claims import Claim
from qsup.host.image import OpenImage, open_image
from qsup.host.storage import open_in_thread
from qsup.instance.services import Services
from qsup.plan.spec import ImageFd


async def open_images(
    requests: Sequence[ImageFd], services: Services, holder: str, numbers: dict[str, int]
) -> tuple[Claim, ...]:
    """Open, check and claim images.

    Args:
        holder: the VM's name.
        numbers: gets each descriptor by its name; those opened before a failure are in it, and to be closed.

    Raises:
        ImageError, ImageInUse: the first that cannot be had; claims made before stand.
    """
    claims = []
    for request in requests:
        image = await open_in_thread(partial(open_one, request, services), close=OpenImage.close)
        numbers.update(_numbers(request, image))
        claim = services.claims.acquire(
            image, holder=holder, writable=request.claim_write, shareable=request.shareable, entry=request.entry
        )
        claims.append(claim)
    return tuple(claims)


async def reopen_images(
    requests: Sequence[ImageFd], services: Services, claims: Sequence[Claim], numbers: dict[str, int]
) -> None:
    """Open images anew that a VM has.

    Args:
        claims: its.
        numbers: as for `open_images`.

    Raises:
        ImageError: one cannot be opened, or is another file now.
    """
    known = {claim.key for claim in claims}
    for request in requests:
        image = await open_in_thread(partial(open_one, request, services), close=OpenImage.close)
        numbers.update(_numbers(request, image))
        if (image.st_dev, image.st_ino) not in known:
            words = f"disk image {request.path} is another file than the one in use"
            raise ImageError(words, rule="replaced", path=request.path)


def open_one(request: ImageFd, services: Services) -> OpenImage:
    """Open an image and check it, claiming nothing. Blocks for the disk. `ImageError`, `ImageInUse`."""
    return open_image(
        request.path,
        pools=services.layout.pools,
        format=request.format,
        read_only=not request.writable,
        backing=request.backing,
        allow_block_devices=services.block_devices,
        direct=request.direct,
        own=request.own,
    )


def _numbers(request: ImageFd, image: OpenImage) -> dict[str, int]:
    if image.fd_rw is None:
        return {request.name: image.fd_ro}
    return {request.name: image.fd_rw, f"{request.name}:ro": image.fd_ro}

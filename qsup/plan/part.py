"""What one part of a VM adds to its plan, and how values are written as QEMU arguments.

Decides: the spelling of arguments: JSON where QEMU takes it, else commas doubled, so that no value of a unit can become
an option of its own.
Must not: know what any device is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from attrs import frozen

from qsup.plan.spec import Argument, FdArgument, FdRequest, FileRequest

#: One JSON argument: the properties of a device, block node, network back end or object.
Properties = Mapping[str, object]

# Stands for a descriptor's number in JSON until `split_at_fd` cuts there; no text of a unit holds a control character.
_FD = "\x00fd"


@frozen(kw_only=True)
class Part:
    """The contribution of one disk, one NIC, one feature.

    Args:
        subject: what it is, for errors, such as ``disk "root"``.
        arguments: options with their values, in order.
        devices: properties of the ``-device`` options that follow, controllers before what hangs on them.
        fds: descriptors it needs.
        files: files it needs by path.
        warnings: what the user should know, one sentence each.
    """

    subject: str
    arguments: tuple[Argument, ...] = ()
    devices: tuple[Properties, ...] = ()
    fds: tuple[FdRequest, ...] = ()
    files: tuple[FileRequest, ...] = ()
    warnings: tuple[str, ...] = ()

    def render(self) -> tuple[Argument, ...]:
        """All its arguments, devices last."""
        return (*self.arguments, *(argument for device in self.devices for argument in option("device", device)))


def escape(text: str) -> str:
    """A value for a comma-separated option such as ``-name``: commas doubled (QEMU's ``opts_parse``)."""
    return text.replace(",", ",,")


def to_json(properties: Properties) -> str:
    """A JSON argument, on one line and in the order given."""
    return json.dumps(properties, separators=(",", ":"))


def option(name: str, properties: Properties) -> tuple[str, str]:
    """``-NAME JSON``."""
    return f"-{name}", to_json(properties)


def fd_option(name: str, properties: Properties, key: str, fd: str) -> tuple[str, FdArgument]:
    """``-NAME JSON`` whose string property ``key`` is the number of a descriptor.

    Args:
        fd: the `FdRequest`'s name.
    """
    before, after = to_json({**properties, key: _FD}).split(json.dumps(_FD)[1:-1])
    return f"-{name}", FdArgument(before=before, fd=fd, after=after)


def flatten(pairs: Sequence[Sequence[Argument]]) -> tuple[Argument, ...]:
    """Options one after the other."""
    return tuple(argument for pair in pairs for argument in pair)

"""The whole exception tree of qsup, each class with a stable code.

Decides: which failures exist, their machine-readable ``code`` and the HTTP status they map to.
Must not: import anything outside the standard library (``qsupctl`` loads this at every start), log, or do I/O.

::

    QsupError
    ├── RequestError                the caller asked for something malformed        bad-request          400
    │   ├── PayloadTooLarge         a body or header beyond its bound               payload-too-large    413
    │   │   └── HeaderTooLarge      the request line and header together            header-too-large     431
    │   ├── MethodNotAllowed        the resource has other methods                  method-not-allowed   405
    │   ├── NotAcceptable           media type or encoding not offered              not-acceptable       406
    │   ├── UnsupportedMediaType    a body of a type that is not read here          unsupported-media    415
    │   ├── RequestTimeout          header or body did not come in time             request-timeout      408
    │   └── UpgradeRequired         the resource is a WebSocket                     upgrade-required     426
    ├── ForbiddenError              the caller's role is too small                  forbidden            403
    ├── NotFoundError               no such thing                                   not-found            404
    │   ├── NoSuchUnit                                                              no-such-unit         404
    │   ├── NoSuchInstance                                                          no-such-instance     404
    │   ├── NoSuchDevice                                                            no-such-device       404
    │   └── NoSuchOperation                                                         no-such-operation    404
    ├── GoneError                   it existed and is no longer kept                gone                 410
    ├── PreconditionFailed          If-Match or If-None-Match                       precondition-failed  412
    ├── DeniedError                 not allowed in the VM's present state           not-allowed          409
    │   ├── BusyError               another operation holds the VM                  busy                 409
    │   └── OperationCancelled      somebody ended it, or a later one took its place cancelled           409
    ├── ChangeError                 a change of a running VM is not possible        change-refused       409
    │   └── GuestRefused            the guest does not let a device go              guest-refused        409
    ├── DependencyError             other VMs stand in the way                      dependency           409
    ├── OverloadedError             a bound of the daemon is reached, try later     overloaded           503
    ├── UnitError                   unit files with errors, all of them             unit-invalid         422
    ├── UnsupportedError            this QEMU or this host cannot do it             unsupported          422
    ├── StartError                  a VM could not be started                       start-failed         500
    ├── StopError                   a VM could not be stopped                       stop-failed          500
    ├── UndefinedTransition         a (state, event) pair the table does not hold   undefined-transition 500
    ├── HostError                   the operating system said no                    host                 500
    │   ├── ConfigError             the daemon's own configuration is wrong         config               500
    │   ├── AlreadyRunning          another daemon owns these directories           already-running      409
    │   ├── ImageError              an image is missing, of another format, unsafe  image                422
    │   │   └── ImageInUse          another VM or process holds it                  image-in-use         409
    │   ├── PlacementError          the CPUs and nodes that are left do not do      placement            409
    │   ├── CapacityError           more than may be promised of the host           capacity             409
    │   ├── NetworkError            taps, bridges, ports                            network              500
    │   ├── NoSpaceError            ENOSPC or EDQUOT                                no-space             507
    │   └── StateFileError          a record of ours is unreadable                  state-file           500
    ├── MonitorError                QMP                                             qmp                  502
    │   ├── MonitorConnectError     no monitor to talk to                           qmp-connect          502
    │   ├── MonitorClosed           the connection ended under us                   qmp-closed           502
    │   ├── MonitorTimeout          no answer in time; the outcome is unknown       qmp-timeout          504
    │   ├── MonitorProtocolError    what came was not QMP                           qmp-protocol         502
    │   └── QmpCommandError         QEMU answered with an error                     qmp-error            502
    ├── AgentError                  the guest agent                                 agent                502
    │   ├── AgentUnavailable        no channel, or nobody listens in the guest      agent-unavailable    409
    │   ├── AgentTimeout            no answer in time                               agent-timeout        504
    │   ├── AgentProtocolError      what came was not the agent's protocol          agent-protocol       502
    │   └── AgentCommandError       the agent answered with an error                agent-error          502
    └── ClientError                 qsupctl's own, never sent                       client               -
        ├── UsageError              the command line is wrong                       usage                -
        ├── DaemonUnreachable       no daemon answers at the socket                 daemon-unreachable   -
        └── DaemonProtocolError     what came is not the API of this version        daemon-protocol      -

Long because it is the whole tree, and a tree is read as one.

A foreign exception (``OSError``, ``qemu.qmp`` errors, ``h11.ProtocolError``) is mapped once, at the boundary where it
appears, with ``raise ... from``.
"""

from __future__ import annotations

import errno
import os

# typing costs qsupctl several milliseconds at every start, and nothing here needs it when running
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class QsupError(Exception):
    """Something the user must be told, complete: what happened, to which VM, why, and what to do.

    Args:
        message: one sentence, lower case, without the VM's name, holding the cause in the words of its source.
        instance: the VM concerned, or ``""``.
        hint: what the user can do about it, one sentence, or ``""``.
        details: further machine-readable facts, JSON values only.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, instance: str = "", hint: str = "", **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.instance = instance
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.instance}: {self.message}" if self.instance else self.message


class RequestError(QsupError):
    """The request itself is malformed: nothing was done."""

    code = "bad-request"
    status = 400


class PayloadTooLarge(RequestError):
    """A body, header or message beyond its bound."""

    code = "payload-too-large"
    status = 413


class HeaderTooLarge(PayloadTooLarge):
    """The request line and the header together are beyond their bound."""

    code = "header-too-large"
    status = 431


class MethodNotAllowed(RequestError):
    """The resource exists and has other methods.

    Args:
        allow: those methods.
    """

    code = "method-not-allowed"
    status = 405

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message, allow=list(allow))
        self.allow = allow


class NotAcceptable(RequestError):
    """A media type or encoding that this resource does not offer."""

    code = "not-acceptable"
    status = 406


class UnsupportedMediaType(RequestError):
    """A body of a media type that this resource does not read."""

    code = "unsupported-media"
    status = 415


class RequestTimeout(RequestError):
    """The header or the body did not arrive within its deadline."""

    code = "request-timeout"
    status = 408


class UpgradeRequired(RequestError):
    """The resource speaks WebSocket and the request is no valid WebSocket handshake."""

    code = "upgrade-required"
    status = 426


class ForbiddenError(QsupError):
    """The caller's role does not allow this request."""

    code = "forbidden"
    status = 403


class NotFoundError(QsupError):
    """The resource does not exist."""

    code = "not-found"
    status = 404


class NoSuchUnit(NotFoundError):
    """No unit file of that name on the search path."""

    code = "no-such-unit"


class NoSuchInstance(NotFoundError):
    """No VM of that name is known."""

    code = "no-such-instance"


class NoSuchOperation(NotFoundError):
    """No operation of that id is known (any more)."""

    code = "no-such-operation"


class NoSuchDevice(NotFoundError):
    """A VM has no such disk, NIC or other device."""

    code = "no-such-device"


class GoneError(QsupError):
    """What was asked for is older than what is kept."""

    code = "gone"
    status = 410


class PreconditionFailed(QsupError):
    """``If-Match`` named no present version, or ``If-None-Match`` one that is there."""

    code = "precondition-failed"
    status = 412


class DeniedError(QsupError):
    """The VM's present state does not allow the request; nothing was done."""

    code = "not-allowed"
    status = 409


class BusyError(DeniedError):
    """Another operation holds the VM; ``details["operation"]`` names it."""

    code = "busy"


class OperationCancelled(DeniedError):
    """Somebody has ended the operation, or a later one has taken its place; what it had done by then stays."""

    code = "cancelled"


class ChangeError(QsupError):
    """A VM that runs cannot be changed so."""

    code = "change-refused"
    status = 409


class GuestRefused(ChangeError):
    """The guest does not let a device go."""

    code = "guest-refused"


class DependencyError(QsupError):
    """What a VM requires, conflicts with or is ordered by does not allow it to be started."""

    code = "dependency"
    status = 409


class KeyReusedError(QsupError):
    """An ``Idempotency-Key`` came with another request than the first time; nothing was done."""

    code = "key-reused"
    status = 422


class OverloadedError(QsupError):
    """A bound of the daemon is reached; the same request may succeed later."""

    code = "overloaded"
    status = 503


class Diagnostic:
    """One error in one unit file: ``file:line: key: message``.

    Args:
        file: the path as the user knows it.
        line: 1-based, 0 when no line applies (an unreadable file).
        key: dotted TOML key such as ``disk.root.path``, or ``""``.
        message: the error, with a suggestion where there is one.
    """

    __slots__ = ("file", "key", "line", "message")

    def __init__(self, file: str, line: int, key: str, message: str) -> None:
        self.file = file
        self.line = line
        self.key = key
        self.message = message

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"

    def __repr__(self) -> str:
        return f"Diagnostic({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Diagnostic) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.file, self.line, self.key, self.message))

    def as_dict(self) -> dict[str, object]:
        """The wire shape: ``{"file", "line", "key", "message"}``."""
        return {"file": self.file, "line": self.line, "key": self.key, "message": self.message}


class UnitError(QsupError):
    """Unit files that do not make a valid unit; ``diagnostics`` holds every error found, in file order."""

    code = "unit-invalid"
    status = 422

    def __init__(self, diagnostics: tuple[Diagnostic, ...], *, instance: str = "", hint: str = "") -> None:
        count = len(diagnostics)
        message = str(diagnostics[0]) if count == 1 else f"{count} errors, the first: {diagnostics[0]}"
        super().__init__(message, instance=instance, hint=hint, diagnostics=[d.as_dict() for d in diagnostics])
        self.diagnostics = diagnostics


class UnsupportedError(QsupError):
    """This QEMU binary or this host cannot do what the unit asks for."""

    code = "unsupported"
    status = 422


class StartError(QsupError):
    """A VM could not be started; what was made for it is gone again."""

    code = "start-failed"


class StopError(QsupError):
    """A VM could not be stopped; the message says where it stands."""

    code = "stop-failed"


class UndefinedTransition(QsupError):
    """An event for which the state table has no edge. Nothing was changed."""

    code = "undefined-transition"


class HostError(QsupError):
    """The operating system refused something."""

    code = "host"


class ConfigError(HostError):
    """The daemon's own configuration or command line is wrong."""

    code = "config"


class AlreadyRunning(HostError):
    """Another daemon owns these directories."""

    code = "already-running"
    status = 409


class ImageError(HostError):
    """A disk image is missing, unreadable, of another format than declared, or refers to undeclared files."""

    code = "image"
    status = 422


class ImageInUse(ImageError):
    """Another VM (or an unknown process) holds the image."""

    code = "image-in-use"
    status = 409


class HostDeviceError(HostError):
    """A PCI or USB device of the host cannot be given to a VM: it is not there, or somebody else has it."""

    code = "host-device"
    status = 422


class PlacementError(HostError):
    """A VM cannot have the CPUs and the memory it wants beside those that are there already."""

    code = "placement"
    status = 409


class CapacityError(HostError):
    """More than may be promised to VMs of the host's memory, huge pages or CPUs: a start can be forced."""

    code = "capacity"
    status = 409


class NetworkError(HostError):
    """A tap, a bridge or a host port could not be had."""

    code = "network"


class NoSpaceError(HostError):
    """A file system is full (ENOSPC) or a quota is reached (EDQUOT)."""

    code = "no-space"
    status = 507


class StateFileError(HostError):
    """A record of the daemon's own cannot be read; it is left as it is."""

    code = "state-file"


class MonitorError(QsupError):
    """Something is wrong between the daemon and QEMU's monitor."""

    code = "qmp"
    status = 502


class MonitorConnectError(MonitorError):
    """The monitor could not be connected or negotiated."""

    code = "qmp-connect"


class MonitorClosed(MonitorError):
    """The connection ended before the answer came; the command's outcome is unknown."""

    code = "qmp-closed"


class MonitorTimeout(MonitorError):
    """No answer within the deadline; the command may still be carried out."""

    code = "qmp-timeout"
    status = 504


class MonitorProtocolError(MonitorError):
    """What QEMU sent is not QMP; the connection is given up."""

    code = "qmp-protocol"


class QmpCommandError(MonitorError):
    """QEMU answered a command with an error, kept in its own words.

    Args:
        command: the QMP command's name.
        error_class: QAPI's ``QapiErrorClass``.
        desc: QEMU's text.
    """

    code = "qmp-error"

    def __init__(self, command: str, error_class: str, desc: str, *, instance: str = "", hint: str = "") -> None:
        super().__init__(
            f"{command}: {desc}",
            instance=instance,
            hint=hint,
            command=command,
            qmp={"class": error_class, "desc": desc},
        )
        self.command = command
        self.error_class = error_class
        self.desc = desc


class AgentError(QsupError):
    """Something is wrong with the guest agent or its channel."""

    code = "agent"
    status = 502


class AgentUnavailable(AgentError):
    """The VM has no agent channel, or nobody in the guest listens on it."""

    code = "agent-unavailable"
    status = 409


class AgentTimeout(AgentError):
    """The agent did not answer within the deadline."""

    code = "agent-timeout"
    status = 504


class AgentProtocolError(AgentError):
    """What came through the channel is not the agent's protocol, or too much of it."""

    code = "agent-protocol"


class AgentCommandError(AgentError):
    """The agent answered a command with an error, kept in its own words.

    Args:
        command: the agent command's name.
        error_class: QAPI's ``QapiErrorClass``.
        desc: the agent's text.
    """

    code = "agent-error"

    def __init__(self, command: str, error_class: str, desc: str, *, instance: str = "", hint: str = "") -> None:
        super().__init__(
            f"{command}: {desc}",
            instance=instance,
            hint=hint,
            command=command,
            agent={"class": error_class, "desc": desc},
        )
        self.command = command
        self.error_class = error_class
        self.desc = desc


class ClientError(QsupError):
    """Something is wrong on ``qsupctl``'s side of the socket; the daemon never sends it."""

    code = "client"


class UsageError(ClientError):
    """The command line is not one that ``qsupctl`` understands; nothing was sent."""

    code = "usage"


class DaemonUnreachable(ClientError):
    """No daemon can be reached at the socket, or it stopped answering."""

    code = "daemon-unreachable"


class DaemonProtocolError(ClientError):
    """What came through the socket is not this API."""

    code = "daemon-protocol"


def oserror_words(error: OSError) -> str:
    """What an ``OSError`` says, without its number and its file."""
    return os.strerror(error.errno) if error.errno is not None else str(error)


def from_oserror(error: OSError, doing: str, *, instance: str = "", hint: str = "") -> HostError:
    """Map an ``OSError`` to the tree, in the kernel's own words.

    Args:
        error: what the kernel answered.
        doing: what was tried, such as ``"could not open disk image /x.qcow2"``.

    Returns:
        `NoSpaceError` for ENOSPC and EDQUOT, else a plain `HostError`; the caller raises it ``from error``.
    """
    kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
    name = errno.errorcode.get(error.errno or 0, "")
    return kind(f"{doing}: {oserror_words(error)}", instance=instance, hint=hint, errno=name)

#!/usr/bin/python3 -IS
"""An emulator that is a puppet: it hands its sockets to a test and does what it is told, until that hangs up.

Decides: nothing. To be probed (``-machine none``) it becomes the real QEMU, by the link ``real`` beside it.
Must not: import anything but the standard library; it runs as a VM's own user, far from the checkout.

It connects to the socket ``stage`` beside it, and sends a line of JSON (its command line, its pid, the names of its
``-chardev socket`` arguments) together with the descriptors of these. Each line it then gets is a JSON string of Python
code, which it runs and acknowledges with a newline. `tests.real.puppets` is the other end.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys


def main(argv: list[str]) -> None:
    """Be a QEMU that was started with ``argv``."""
    here = os.path.dirname(os.path.abspath(argv[0]))
    if any(word.startswith("none,") for word in argv):
        os.execv(f"{here}/real", argv)
    stage = socket.socket(socket.AF_UNIX)
    stage.connect(f"{here}/stage")
    sockets = [match for word in argv if (match := re.fullmatch(r"socket,id=(\w+),fd=(\d+),server=on,wait=off", word))]
    greeting = {"argv": argv, "pid": os.getpid(), "names": [match[1] for match in sockets]}
    socket.send_fds(stage, [json.dumps(greeting).encode() + b"\n"], [int(match[2]) for match in sockets])
    for line in stage.makefile():
        exec(json.loads(line), {"os": os, "sys": sys, "socket": socket, "stage": stage})
        stage.sendall(b"\n")


if __name__ == "__main__":
    main(sys.argv)

"""Write the golden files anew: ``python -m tests.plan.regenerate [--record EMULATOR...]``.

Decides: nothing; what it writes is to be read before it is committed.
Must not: be run by a test.

With ``--record``, QEMU binaries are asked first what they can do, for `tests/plan/capabilities`.
"""

from __future__ import annotations

import json
import sys

import trio
from attrs import evolve

from qsup.host import codec
from qsup.instance.probe import ProbeRecord, find_emulator, probe_binary
from qsup.qmp.capabilities import REVISION
from tests.plan import goldens, placing


async def record(emulator: str) -> str:
    """Ask one binary and keep its answers as if it were the installed one; return the record's name."""
    said = await probe_binary(find_emulator(emulator).path)
    name = "qemu-" + ".".join(said.version.split(".")[:2])
    kept = evolve(said, emulator="/usr/bin/qemu-system-x86_64")
    probe = ProbeRecord(revision=REVISION, mtime_ns=0, size=0, capabilities=kept)
    text = json.dumps(codec.encode(probe), indent=1)
    (goldens.CAPABILITIES / f"{name}.json").write_text(text + "\n")
    return name


def main(arguments: list[str]) -> None:
    """Write what has changed and say which files that were."""
    if arguments[:1] == ["--record"]:
        for emulator in arguments[1:]:
            sys.stdout.write(f"recorded {trio.run(record, emulator)}\n")
    for name in goldens.names():
        golden = goldens.load(name)
        text = goldens.render(golden.plan(goldens.capabilities()))
        if not golden.expected.exists() or golden.expected.read_text() != text:
            golden.expected.write_text(text)
            sys.stdout.write(f"wrote {golden.expected.name}\n")
    for host in placing.ARRIVALS:
        kept = placing.KEPT / f"{host.replace(' ', '-')}.txt"
        text = placing.render(host)
        if not kept.exists() or kept.read_text() != text:
            kept.write_text(text)
            sys.stdout.write(f"wrote {kept.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])

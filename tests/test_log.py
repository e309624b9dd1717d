"""The daemon's own log."""

from __future__ import annotations

import json
import os
import subprocess
import sys

LOGGING = """
import structlog
from qsup import log
log.configure("info")
for number in range(3):
    structlog.get_logger().warning("told", number=number, surrogate="\\udcff")
print("alive")
"""


def test_a_log_that_nobody_can_take_harms_nobody() -> None:
    """Standard error whose reader is gone, or on a full disk: the record is lost, and the program goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        for stderr in (writer, full.fileno()):
            done = subprocess.run([sys.executable, "-c", LOGGING], stderr=stderr, stdout=subprocess.PIPE, timeout=30)
            assert (done.returncode, done.stdout) == (0, b"alive\n")
    os.close(writer)


def test_a_record_is_one_line_of_json() -> None:
    """Whatever is in it."""
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, timeout=30, check=True)
    assert [json.loads(line)["number"] for line in done.stderr.splitlines()] == [0, 1, 2]

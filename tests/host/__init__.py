"""Tests of `qsup.host`: real files, real children, real taps, no QEMU."""

from __future__ import annotations

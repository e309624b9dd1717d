"""Tests of `qsup.host`: real files, real children, real taps, no virtual machine."""

from __future__ import annotations

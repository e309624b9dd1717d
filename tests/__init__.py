"""Tests: one folder per room for those that need no QEMU, ``real/`` for those that start one."""

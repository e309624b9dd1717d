"""Tests that start a real QEMU; the fixtures are in ``conftest.py``."""

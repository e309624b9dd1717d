"""Tests of `qsup.host`: real files, real children, real taps, no virtual machine."""

"""Tests of `qsup.instance`."""

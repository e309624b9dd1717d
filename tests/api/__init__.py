"""Tests of `qsup.api`."""

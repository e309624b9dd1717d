"""Tests of the monitor and the guest agent's client, against recordings of the real ones."""

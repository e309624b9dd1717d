"""The HTTP API on the local Unix socket."""

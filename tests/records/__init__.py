"""State files: what is in them, by version."""

"""Unit files: TOML text to frozen values. Pure."""

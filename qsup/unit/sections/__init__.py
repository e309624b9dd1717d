"""The tables of a unit file, by what they are about."""

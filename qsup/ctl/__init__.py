"""qsupctl, the command line client."""

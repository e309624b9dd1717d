"""The verbs of qsupctl, one module per family."""

"""What qsup costs, measured: ``python -m tests.bench``."""

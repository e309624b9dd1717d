"""What qsup must survive, tried again and again: ``python -m tests.faults``."""

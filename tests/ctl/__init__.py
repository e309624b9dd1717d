"""qsupctl: against the real API over a supervisor in memory, and against peers that send raw bytes."""

"""qsup supervises QEMU processes as systemd supervises services."""

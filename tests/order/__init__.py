"""What VMs have to do with each other, without QEMU: drivers that nobody runs, moved by hand."""

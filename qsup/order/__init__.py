"""What VMs have to do with each other: what a request brings along, and who waits for whom."""

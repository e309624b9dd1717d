"""One virtual machine: its states, its restart policy and the task that owns it."""

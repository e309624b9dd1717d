"""The operating system: processes, pidfds, cgroups, files, taps, images."""

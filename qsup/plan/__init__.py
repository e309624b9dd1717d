"""From a unit, the host's facts and QEMU's capabilities to argv, descriptors and QMP steps. Pure."""

"""What a real QEMU and a real guest agent said, and the means to record it again."""

"""The monitor and the guest agent: transport and typed verbs."""

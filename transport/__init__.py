"""The wire that both processes share: certificates, framing, Flower messages to bytes and back."""

"""The wire protocol that server and agents share: certificates, framing, encoding of Flower messages."""

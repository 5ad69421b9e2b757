"""The pure core: updates, codec, encryption, signing, manifest, ledger, accounting. No flwr, no grpc."""

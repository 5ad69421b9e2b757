"""Cryptography: encryption, masks, codes and tags, commitments and proofs, keys and signatures."""

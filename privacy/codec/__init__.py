"""Updates and their wire form: packing into integers, ciphertexts, headers, signatures."""

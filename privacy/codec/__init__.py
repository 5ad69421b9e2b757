"""From an update to what travels: packing into integers, ciphertexts in bytes, headers, signatures."""

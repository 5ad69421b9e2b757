"""The forms in which a site's or a person's private keys could leak."""

from base64 import b64encode
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key


def forms_of_private_keys(site: Path) -> list[bytes]:
    """Each private key in a site's folder, raw and encoded, as bytes to search for."""
    sealing = site / "keys" / "sealing.key"
    secrets = [sealing.read_bytes()] if sealing.exists() else []
    for path in (site / "keys" / "tls.key", site / "keys" / "signing.key"):
        if not path.exists():  # a person has no TLS key
            continue
        key = load_pem_private_key(path.read_bytes(), None)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        number = (
            key.private_numbers().private_value.to_bytes(32) if isinstance(key, EllipticCurvePrivateKey) else der[-32:]
        )
        secrets += [der, number]
    return [form for secret in secrets for form in (secret, secret.hex().encode(), b64encode(secret))]

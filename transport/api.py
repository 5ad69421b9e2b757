"""What the API and its client have in common: paths, limits, and what a person signs to sign in.

A person asks for a challenge, and signs it with the key of their entry in the roster:

    "api-sign-in":   JSON of {"authority", "challenge", "consortium", "host", "person"}, keys sorted, no spaces

The authority is the SHA-256 of its certificate, the host the name or address that the person dialled and for which the
server showed a certificate: a signature is worth nothing in another consortium, or at a server of another name.
`privacy.crypto.signing` binds it to its kind, so that it is worth nothing as a signed run either.
"""

from __future__ import annotations

import json

PORT = 9442
"""The port of the API, unless the server's operator says otherwise."""

SESSION_FILE = "session.json"
"""The file in a person's folder with the API's address and their session's token."""

SIGN_IN = "api-sign-in"
"""The kind of what a person signs."""

LARGEST_RUN = 4 << 20
"""Bytes of a signed run; one that names 10,000 sites takes less than 1 MiB."""

LARGEST_REASON = 300
"""Characters of a reason for stopping a run."""

MOST_RUNS, MOST_EVENTS = 100, 1000
"""How many runs, and how many events of a run, one answer lists."""


def sign_in_payload(*, authority: str, consortium: str, host: str, challenge: str, person: str) -> bytes:
    """Return what a person signs.

    >>> sign_in_payload(authority="ab", consortium="lungs", host="fed.example.org", challenge="cd", person="ana")
    b'{"authority":"ab","challenge":"cd","consortium":"lungs","host":"fed.example.org","person":"ana"}'
    """
    fields = {"authority": authority, "consortium": consortium, "host": host, "challenge": challenge, "person": person}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

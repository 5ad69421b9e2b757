"""Attacks on the protocol: forged and old plans, keys, rosters and manifests, and a second sum for a plan.

Each function makes one try against all sites, and returns whether every site refused.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.settings import HELD_OUT
from privacy.codec.ciphertext import COEFF_MODULUS
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.key_epoch import EpochKeys, SealingKey, seal, write_letters
from privacy.crypto.signing import SignedDocument
from privacy.crypto.tag import KEY_BYTES
from privacy.run.plan import LARGEST_STEP
from simulations.attacks.forged_sums import STEP, constant_added
from simulations.attacks.malicious_server import SECONDS, SITES
from transport.messages import ACCEPT, LEAD, QUERY, TRAIN, Letter, Order, Query

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from privacy.crypto.signing import PrivateKey
    from simulations.attacks.malicious_server import MaliciousServer


def key_overheard(server: MaliciousServer) -> bool:
    """Disturb c1 by less than rounding removes, so that one coefficient of the key decides whether the sum opens.

    Adding ¼ step to c1 adds ¼ step times each coefficient of the key, −1, 0 or 1, to the same coefficient before
    rounding. With another ⅜ step on one of them, it is rounded up if the key has 1 there, and the tag fails; otherwise
    the sum opens.
    """
    run = server.runs["many"]
    transcript = server.collect(run)
    total, place = transcript.total(*transcript.updates), int(server.rng.integers(RING_DEGREE))
    for part, at, eighths in ((0, place, 3), (1, 0, 2)):
        total[part, 0, at] = (int(total[part, 0, at]) + eighths * STEP // 8) % COEFF_MODULUS
    return server.deliver(run, transcript.sum(total, transcript.contributions(*transcript.updates)))


def tried_again(server: MaliciousServer) -> bool:
    """Have a sum refused, restart the agents, and deliver another sum of the same plan, or the true one.

    A server has only one try per plan: with many, it could guess the code of a sum.
    """
    run = server.pick_run()
    transcript = server.collect(run)
    everyone = transcript.contributions(*transcript.updates)
    sums = [
        transcript.sum(transcript.total(*transcript.updates), everyone),
        constant_added(transcript, run.honest, server.rng),
    ]
    first = server.deliver(run, constant_added(transcript, run.honest, server.rng))
    server.restart(*SITES)
    return first and server.deliver(run, sums[server.rng.integers(2)])


def distant_deadline(server: MaliciousServer) -> bool:
    """Plan a round that has ended, or that ends long after its manifest allows, to leave time for backups."""
    run = server.pick_run()
    seconds = float(server.rng.choice([-1.0, 2 * SECONDS, 86_400.0, 10 * 366 * 86_400.0, 1e15]))
    plan = replace(server.plan(run), deadline=time.time() + seconds)
    return server.refused(server.ask_all(TRAIN, Order(run.document, plan.to_bytes())), server.state())


def own_keys(server: MaliciousServer) -> bool:
    """Deliver keys that the server knows, or letters written to other sites."""
    leader, genuine = server.lead(server.pick())
    rng, roster, before = server.rng, server.roster, server.state()
    mine = EpochKeys.generate(server.epoch + 1)
    own = write_letters(mine, roster, leader, Ed25519PrivateKey.generate())
    resealed = {site: _resealed(genuine[site], mine, roster.member(site).sealing_key) for site in SITES}
    crossed = {site: genuine[SITES[index - 1]] for index, site in enumerate(SITES)}
    other = SITES[(SITES.index(leader) + 1) % len(SITES)]
    name, letters = [(leader, own), (leader, resealed), (leader, crossed), (other, genuine)][rng.integers(4)]
    replies = server.ask(ACCEPT, {site: Letter(name, letters[site]) for site in SITES})
    refused = server.refused(replies, before)
    if refused:
        server.relay(leader, genuine)
    return refused


def _resealed(letter: bytes, keys: EpochKeys, public: str) -> bytes:
    """Replace the keys in a letter, under its old signature."""
    line, _, payload = letter.partition(b"\n")
    content = json.loads(payload)
    bound = [content[name] for name in ("consortium", "roster", "epoch", "fingerprint", "leader", "recipient")]
    sealed = seal(public, keys.to_bytes(), b"cloister epoch " + json.dumps(bound).encode())
    content["sealed"] = b64encode(sealed).decode()
    return line + b"\n" + json.dumps(content, sort_keys=True).encode()


def absurd_epoch(server: MaliciousServer) -> bool:
    """Ask for keys of an epoch that leaves no room for later ones, or deliver such keys from a colluding site."""
    number = server.epoch + int(server.rng.choice([LARGEST_STEP + 1, 1 << 32, (1 << 62) - server.epoch]))
    if server.rng.integers(2):
        return server.refused(server.ask_all(LEAD, number), server.state())
    return _led_by_one(server, EpochKeys.generate(number))


def malformed_keys(server: MaliciousServer) -> bool:
    """Deliver a colluding site's keys, under which ciphertexts hide little or nothing, or do not decrypt."""
    rng = server.rng
    drawn = np.frombuffer(DecryptionKey.generate().to_bytes(), dtype="<u8", count=RING_DEGREE).copy()
    drawn[rng.integers(RING_DEGREE)] ^= 1
    zero, one = np.zeros(RING_DEGREE, dtype="<u8"), np.ones(RING_DEGREE, dtype="<u8")  # polynomials 0 and 1
    anything = rng.integers(0, COEFF_MODULUS, RING_DEGREE, dtype=np.uint64)
    words = [drawn, zero, one, one * (COEFF_MODULUS - 1), anything][rng.integers(5)].astype("<u8").tobytes()
    key = DecryptionKey.from_bytes(words + sha256(words).digest())
    return _led_by_one(server, EpochKeys(server.epoch + 1, key, rng.bytes(KEY_BYTES)))


def _led_by_one(server: MaliciousServer, keys: EpochKeys) -> bool:
    """Return whether all sites refuse the keys that a colluding site made."""
    leader, before = server.pick(), server.state()
    letters = write_letters(keys, server.roster, leader, server.site(leader).signing_key)
    return server.refused(server.ask(ACCEPT, {site: Letter(leader, letters[site]) for site in SITES}), before)


def older_epoch(server: MaliciousServer) -> bool:
    """Offer an epoch's keys after those of a newer epoch, and plan a round under them."""
    first, second = (str(site) for site in server.rng.permutation(SITES)[:2])
    _, withheld = server.lead(first)
    epoch, keys = server.epoch, server.keys
    server.relay(*server.lead(second))
    before = server.state()
    letters = {site: Letter(first, withheld[site]) for site in SITES if site != first}  # the first site made them
    refused = server.refused(server.ask(ACCEPT, letters), before)
    run = server.pick_run()
    plan = replace(server.plan(run), epoch=epoch, keys=keys)
    named = [plan, replace(plan, epoch=server.epoch), replace(plan, keys=server.keys)][server.rng.integers(3)]
    return refused and server.refused(server.ask_all(TRAIN, Order(run.document, named.to_bytes())), before)


def own_roster(server: MaliciousServer) -> bool:
    """Restart sites with an edited roster that has the server's key in a member's place."""
    paths = [server.federation.paths[site] / "keys" / "roster" for site in SITES]
    genuine, before = paths[0].read_bytes(), server.state()
    keys: dict[str, str] = {
        "sealing_key": SealingKey.generate().public,
        "signing_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
    }  # fmt: skip
    name, place = str(server.rng.choice(list(keys))), int(server.rng.integers(len(server.roster.members)))

    def edit(content: dict[str, Any]) -> None:
        content["members"][place][name] = keys[name]

    forged = _forged(server, genuine, "roster", ec.generate_private_key(ec.SECP256R1()), edit)
    return _refuse_to_start(server, dict.fromkeys(paths, forged), before)


def held_out_lineage(server: MaliciousServer) -> bool:
    """Restart sites with a lineage whose ledger would be that of another lineage's held-out records."""
    paths, before = [server.federation.paths[site] / "site.toml" for site in SITES], server.state()
    edited = {path: path.read_bytes().replace(b'-patients"', f'-patients{HELD_OUT}"'.encode()) for path in paths}
    return _refuse_to_start(server, edited, before)


def _refuse_to_start(server: MaliciousServer, files: dict[Path, bytes], before: dict[Path, str]) -> bool:
    """Return whether agents that start with these files refuse to act."""
    genuine = {path: path.read_bytes() for path in files}
    try:
        for path, data in files.items():
            path.write_bytes(data)
        with server.new_agents():
            return server.refused(server.ask_all(LEAD, server.epoch + 1), before)
    finally:
        for path, data in genuine.items():
            path.write_bytes(data)


def own_manifest(server: MaliciousServer) -> bool:
    """Edit a run after it was signed: a smaller minimum, other weights, less noise, masks toggled."""
    run = server.pick_run()
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda content: content["settings"]["cohort"].update(minimum=2),
        lambda content: content["settings"]["cohort"]["sizes"].update(north=1),
        lambda content: content.update(noise_multiplier=content["noise_multiplier"] / 2),
        lambda content: content["settings"]["encryption"].update(collusion_resistant=not run.masked),
    ]
    change = changes[server.rng.integers(len(changes))]
    forged = _forged(server, run.document, "manifest", Ed25519PrivateKey.generate(), change)
    before, plan = server.state(), server.plan(run).to_bytes()
    trains = bool(server.rng.integers(2))
    replies = server.ask_all(TRAIN, Order(forged, plan)) if trains else server.ask_all(QUERY, Query(forged))
    return server.refused(replies, before)


def expired_manifest(server: MaliciousServer) -> bool:
    """Bring back a run that has expired."""
    settings = replace(server.runs["few"].manifest.settings, name="late", valid_days=1e-9)
    run, before = server.sign(settings), server.state()
    if server.rng.integers(2):
        return server.refused(server.ask_all(QUERY, Query(run.document)), before)
    plan = replace(server.plan(server.runs["few"]), run=run.digest, round=1, base_model=server.untrained)
    return server.refused(server.ask_all(TRAIN, Order(run.document, plan.to_bytes())), before)


def _forged(
    server: MaliciousServer, document: bytes, kind: str, key: PrivateKey, change: Callable[[dict[str, Any]], None]
) -> bytes:
    """Edit a signed document; keep its old signature, or sign it with another key."""
    line, _, payload = document.partition(b"\n")
    content = json.loads(payload)
    change(content)
    edited = json.dumps(content, indent=1, sort_keys=True).encode()
    return line + b"\n" + edited if server.rng.integers(2) else SignedDocument.make(key, kind, edited).to_bytes()


PROTOCOL_ATTACKS: dict[str, Callable[[MaliciousServer], bool]] = {
    "the key, a coefficient a plan": key_overheard,
    "a second sum after a restart": tried_again,
    "a plan that ends in years": distant_deadline,
    "keys of the server's own": own_keys,
    "keys that hide nothing": malformed_keys,
    "an epoch beyond all others": absurd_epoch,
    "an older epoch": older_epoch,
    "a roster edited": own_roster,
    "a manifest edited": own_manifest,
    "a manifest that has expired": expired_manifest,
    "a ledger in another's place": held_out_lineage,
}
"""The attacks, by their name in the table."""

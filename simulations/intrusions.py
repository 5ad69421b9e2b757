"""What else a malicious server tries: keys, rosters and manifests of its own, older epochs, masks of two attempts.

Each function plays one try against all sites, and returns whether every one refused.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site import open_site
from privacy.ciphertext import COEFF_MODULUS
from privacy.epoch import EpochKeys, SealingKey, seal, write_letters
from privacy.masking import SEALED_BYTES
from privacy.packing import RING_DEGREE
from privacy.plan import MOST_SEEDS
from privacy.signing import SignedDocument
from simulations.adversary import SITES
from simulations.lies import STEP
from strategies.masking import next_attempt
from transport.ceremony import pack_lead, pack_letter
from transport.contents import pack_query, pack_train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from privacy.signing import PrivateKey
    from simulations.adversary import Adversary

_SECONDS = 600.0


def key_overheard(server: Adversary) -> bool:
    """Disturb c1 by less than rounding takes away, so that one coefficient of the key decides whether the sum opens.

    c1 + ¼ step adds ¼ step of each of the key's coefficients, −1, 0 or 1, to the same coefficient of what is rounded.
    With ⅜ more on one of them, that one is rounded up if it is 1 in the key, and the tag does not hold; else all opens.
    """
    run = next(run for run in server.runs if len(run.manifest.settings.cohort.sizes) > MOST_SEEDS)
    made = server.collect(run)
    total, place = made.total(*made.updates), int(server.luck.integers(RING_DEGREE))
    for part, at, eighths in ((0, place, 3), (1, 0, 2)):
        total[part, 0, at] = (int(total[part, 0, at]) + eighths * STEP // 8) % COEFF_MODULUS
    return server.deliver(run, made.sum(total, made.contributions(*made.updates)))


def own_keys(server: Adversary) -> bool:
    """Bring sites keys that the server knows, or letters that were not written to them."""
    leader, genuine = server.lead(server.pick())
    luck, roster, before = server.luck, server.roster, server.state()
    mine = EpochKeys.generate(server.epoch + 1)
    own = write_letters(mine, roster, leader, Ed25519PrivateKey.generate())
    resealed = {site: _resealed(genuine[site], mine, roster.member(site).sealing_key) for site in SITES}
    crossed = {site: genuine[SITES[index - 1]] for index, site in enumerate(SITES)}
    other = SITES[(SITES.index(leader) + 1) % len(SITES)]
    name, letters = [(leader, own), (leader, resealed), (leader, crossed), (other, genuine)][luck.integers(4)]
    replies = server.ask("query.accept", {site: pack_letter(name, letters[site]) for site in SITES})
    refused = server.refused(replies, before)
    if refused:
        server.relay(leader, genuine)
    return refused


def _resealed(letter: bytes, keys: EpochKeys, public: str) -> bytes:
    """Put other keys into a letter, under its old signature."""
    line, _, payload = letter.partition(b"\n")
    content = json.loads(payload)
    bound = [content[name] for name in ("consortium", "roster", "epoch", "fingerprint", "leader", "recipient")]
    sealed = seal(public, keys.to_bytes(), b"cloister epoch " + json.dumps(bound).encode())
    content["sealed"] = b64encode(sealed).decode()
    return line + b"\n" + json.dumps(content, sort_keys=True).encode()


def older_epoch(server: Adversary) -> bool:
    """Offer an epoch's keys after a newer one's, and plan a round under them."""
    first, second = (str(site) for site in server.luck.permutation(SITES)[:2])
    _, withheld = server.lead(first)
    epoch, keys = server.epoch, server.keys
    server.relay(*server.lead(second))
    before = server.state()
    letters = {site: pack_letter(first, withheld[site]) for site in SITES if site != first}  # the first made them
    refused = server.refused(server.ask("query.accept", letters), before)
    run = server.runs[server.luck.integers(len(server.runs))]
    plan = replace(server.plan(run), epoch=epoch, keys=keys)
    named = [plan, replace(plan, epoch=server.epoch), replace(plan, keys=server.keys)][server.luck.integers(3)]
    return refused and server.refused(server.ask("train", pack_train(run.document, named.to_bytes(), [])), before)


def own_roster(server: Adversary) -> bool:
    """Put an edited roster before sites that restart, with the server's own key in a member's place."""
    paths = [server.federation.paths[site] / "keys" / "roster" for site in SITES]
    genuine, before = paths[0].read_bytes(), server.state()
    keys: dict[str, str] = {
        "sealing_key": SealingKey.generate().public,
        "signing_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
    }  # fmt: skip
    name, place = str(server.luck.choice(list(keys))), int(server.luck.integers(len(server.roster.members)))

    def edit(content: dict[str, Any]) -> None:
        content["members"][place][name] = keys[name]

    forged = _forged(server, genuine, "roster", ec.generate_private_key(ec.SECP256R1()), edit)
    try:
        _put(dict.fromkeys(paths, forged))
        return server.refused(server.ask("query.lead", pack_lead(server.epoch + 1)), before)
    finally:
        _put(dict.fromkeys(paths, genuine))


def _put(files: dict[Path, bytes]) -> None:
    for path, data in files.items():
        path.write_bytes(data)
    open_site.cache_clear()  # as when agents restart


def own_manifest(server: Adversary) -> bool:
    """Edit a run after the coordinator signed it: a smaller minimum, other weights, less noise, no masks."""
    run = server.runs[server.luck.integers(len(server.runs))]
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda content: content["settings"]["cohort"].update(minimum=2),
        lambda content: content["settings"]["cohort"]["sizes"].update(north=1),
        lambda content: content.update(noise_multiplier=content["noise_multiplier"] / 2),
        lambda content: content["settings"]["encryption"].update(collusion_resistant=not run.masked),
    ]
    change = changes[server.luck.integers(len(changes))]
    forged = _forged(server, run.document, "manifest", Ed25519PrivateKey.generate(), change)
    before, plan = server.state(), server.plan(run).to_bytes()
    kind, content = [("query", pack_query(forged)), ("train", pack_train(forged, plan, []))][server.luck.integers(2)]
    return server.refused(server.ask(kind, content), before)


def _forged(
    server: Adversary, document: bytes, kind: str, key: PrivateKey, change: Callable[[dict[str, Any]], None]
) -> bytes:
    """Edit a signed document; leave its signature as it was, or sign it with another key."""
    line, _, payload = document.partition(b"\n")
    content = json.loads(payload)
    change(content)
    edited = json.dumps(content, indent=1, sort_keys=True).encode()
    return line + b"\n" + edited if server.luck.integers(2) else SignedDocument.make(key, kind, edited).to_bytes()


def other_masks(server: Adversary) -> bool:
    """Open a masked sum with a site's seed missing, exchanged, made up, or of another round."""
    run = server.masked
    made = server.collect(run)
    site, other = (str(each) for each in server.luck.permutation(list(made.updates))[:2])
    earlier = run.honest.reveals
    changes = [
        {site: b""}, {site: made.reveals[other], other: made.reveals[site]}, {site: earlier[site]},
        {site: server.luck.bytes(SEALED_BYTES)},
    ]  # fmt: skip
    changed = replace(made, reveals=made.reveals | changes[server.luck.integers(4)])
    return server.deliver(run, changed.sum(changed.total(*made.updates), changed.contributions(*made.updates)))


def two_attempts(server: Adversary) -> bool:
    """Say that a site dropped out, to have masks of two attempts at a round: who answered for one is in no other."""
    run, luck = server.masked, server.luck
    *rest, _ = everyone = [str(site) for site in luck.permutation(SITES)]
    first = server.train(run, server.plan(run))
    asked = [everyone, rest[: int(luck.integers(1, len(rest)))]][luck.integers(2)]
    signatures, _ = server.agreed(first, *everyone)
    if not all(reply.has_content() for reply in server.reveal(first, signatures, asked).values()):
        return False
    before, again = server.state(), pack_train(run.document, next_attempt(first.plan, rest, _SECONDS).to_bytes(), [])
    replies = server.ask("train", dict.fromkeys(rest, again))
    return server.refused({site: reply for site, reply in replies.items() if site in asked}, before)


def two_sets(server: Adversary) -> bool:
    """Have sites sign one set of contributors, and then show them another, or signatures that are not of all of it."""
    run, luck = server.masked, server.luck
    *rest, gone = everyone = [str(site) for site in luck.permutation(SITES)]
    made = server.train(run, server.plan(run))
    first, second = [(everyone, rest), (rest, everyone)][luck.integers(2)]
    signatures, _ = server.agreed(made, *first)
    before = server.state()
    refused = server.refused(
        {site: each for site, each in server.agree(made, *second).items() if site in first}, before
    )
    victim = rest[0]
    lies = [
        {site: signature for site, signature in signatures.items() if site != victim},
        signatures | {victim: signatures[first[-1]]},
        signatures | {victim: luck.bytes(64)},
        {site: signatures.get(site, signatures[victim]) for site in second},
    ]
    told = lies[luck.integers(len(lies))]
    headers = made.contributions(*([*told, victim] if victim not in told else told))
    return refused and server.refused(server.show(made, headers, told, [site for site in rest if site != gone]), before)


INTRUSIONS: dict[str, Callable[[Adversary], bool]] = {
    "a mask withheld or exchanged": other_masks,
    "masks of two attempts": two_attempts,
    "two sets of contributors": two_sets,
    "the key, a coefficient a plan": key_overheard,
    "keys of the server's own": own_keys,
    "a roster edited": own_roster,
    "an older epoch": older_epoch,
    "a manifest edited": own_manifest,
}
"""By what the table calls them."""

"""Attacks by the server with some sites' disks: their signing keys, the keys of every epoch, and all shared seeds.

Such a coalition can forge codes and tags, within the range of the sum: the threat model says so, and no attack here
tries it. Of the other sites' updates, it must read no more than one sum per round, of at least two of them; and a
colluding site's signature must not count as anybody else's.

Each function makes one try. It returns whether honest sites kept to the rules, and the coalition, which removes all
masks whose seeds it has, read nothing forbidden.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.codec.envelope import sign_update
from privacy.codec.packing import pack, unpack
from privacy.codec.update import PrivateUpdate
from privacy.crypto import agreement
from privacy.crypto.key_epoch import EpochKeys, write_letters
from privacy.crypto.masking import Masks, mask, open_pairs, open_seed, unmask_sum, verify_pairs, verify_seed
from privacy.crypto.pairs import write_pairs
from privacy.errors import MalformedError
from privacy.noise.randomness import Randomness
from simulations.attacks.malicious_server import SECONDS, SITES
from strategies.masking import next_attempt
from transport.messages import ACCEPT, AGREE, REVEAL, TRAIN, Letter, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from flwr.app import Message

    from client.site import Site
    from privacy.run.plan import RoundPlan
    from simulations.attacks.malicious_server import MaliciousServer
    from simulations.attacks.transcript import Run, Transcript


_SHOWN = 0.75  # the chance that another site is in a made-up set


class Coalition:
    """A malicious server, as many colluding sites as the run must tolerate, and the seeds that they have."""

    def __init__(self, server: MaliciousServer, run: Run) -> None:
        self.server, self.run = server, run
        sites = server.shuffled()
        self.inside, self.honest = sites[: run.minimum - 2], sites[run.minimum - 2 :]
        self.transcripts: list[Transcript] = []  # the updates of all sites, for every plan
        self._own: dict[tuple[str, str], bytes] = {}  # seeds of honest sites' own masks, by plan
        self._shared: dict[tuple[str, str, str], bytes] = {}  # seeds of masks between them, by plan

    @property
    def disk(self) -> Site:
        """A colluding site's folder."""
        return self.server.site(self.inside[0])

    def train(self, plan: RoundPlan) -> Transcript:
        """Collect the updates of a plan's cohort."""
        self.transcripts.append(self.server.train(self.run, plan))
        return self.transcripts[-1]

    def agree(self, transcript: Transcript, claimed: AbstractSet[str], sites: Sequence[str]) -> dict[str, bytes]:
        """Show honest sites a set of contributors; return their and the colluding sites' signatures of it."""
        headers = {site: transcript.updates[site].header for site in sorted(claimed)}
        absent, keys = agreement.absent_from(transcript.plan, headers), self.disk.keyring.find(transcript.plan.keys)
        signatures = {
            site: agreement.agree(_Forgetful(), transcript.plan, headers, self.server.site(site).signing_key)
            for site in self.inside
        }
        for site, reply in self.server.agree(transcript, *headers, sites=sites).items():
            if reply.has_content():
                agreed = AGREE.read_reply(reply.content)
                signatures[site], sealed = agreed.signature, agreed.sealed
                key, committed = self.server.roster.member(site).verification_key, _stated(transcript, site, "pairs")
                sealed = verify_pairs(sealed, transcript.plan, committed, absent, key)
                seeds = open_pairs(sealed, absent, keys.secret, transcript.plan, site, committed)
                self._shared |= {(transcript.plan.digest, site, other): seed for other, seed in seeds.items()}
        return signatures

    def reveal(
        self, transcript: Transcript, claimed: AbstractSet[str], signatures: dict[str, bytes], sites: Sequence[str]
    ) -> dict[str, Message]:
        """Ask honest sites for the seeds of their own masks, showing these signatures."""
        keys = self.disk.keyring.find(transcript.plan.keys)
        replies = self.server.show(transcript, transcript.contributions(*sorted(claimed)), signatures, sites)
        for site, reply in replies.items():
            if reply.has_content():
                key, committed = self.server.roster.member(site).verification_key, _stated(transcript, site, "mask")
                sealed = verify_seed(REVEAL.read_reply(reply.content), transcript.plan, committed, key)
                self._own[transcript.plan.digest, site] = open_seed(
                    sealed, keys.secret, transcript.plan, site, committed
                )
        return replies

    @property
    def reads_too_much(self) -> bool:
        """Whether the coalition can read an honest site's update, or two sums that contain the same one."""
        sums = {
            frozenset(chosen)
            for transcript in self.transcripts
            for size in range(1, len(self.honest) + 1)
            for chosen in combinations([site for site in self.honest if site in transcript.updates], size)
            if self._reads(transcript, chosen)
        }
        return any(len(members) == 1 for members in sums) or any(one & other for one, other in combinations(sums, 2))

    def _reads(self, transcript: Transcript, chosen: Sequence[str]) -> bool:
        """Unmask the sum of some honest sites' updates, and check whether it decodes."""
        plan, keys = transcript.plan, self.disk.keyring.find(transcript.plan.keys)
        own = {site: self._own.get((plan.digest, site), b"") for site in chosen}
        pairs = {
            site: {other: self._seed(plan, site, other) for other in plan.cohort if other not in chosen}
            for site in chosen
        }
        if not all([*own.values(), *(seed for seeds in pairs.values() for seed in seeds.values())]):
            return False
        total = transcript.sum(transcript.total(*chosen), transcript.contributions(*chosen)).ciphertexts
        blocks = unmask_sum(keys.decryption.decrypt(total.chunks()), own, pairs, plan)
        weights, size = [_stated(transcript, site, "weight") for site in chosen], _stated(transcript, chosen[0], "size")
        try:
            unpack(blocks, size, weights, self.run.manifest.packing)
        except MalformedError:
            return False
        return True

    def _seed(self, plan: RoundPlan, site: str, other: str) -> bytes:
        """Return the seed of the mask that two sites share, if the coalition has it."""
        if other in self.inside:
            secrets = self.server.site(other).keyring.shared_with(plan.keys, plan.cohort, other)
            return Masks(secrets, b"", plan, other).pairs[site]
        named = plan.digest, site, other
        return self._shared.get(named) or self._shared.get((plan.digest, other, site), b"")


class _Forgetful:
    """The commitments of a site that signs anything."""

    def note(self, run: str, action: str, value: str) -> None:
        """Note nothing."""

    def find(self, run: str, action: str) -> None:
        """Remember nothing."""


def _stated(transcript: Transcript, site: str, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    return json.loads(transcript.updates[site].header)[name]


def _gather(server: MaliciousServer) -> Coalition:
    return Coalition(server, server.runs[str(server.rng.choice(["masked", "pair"]))])


def false_dropout(server: MaliciousServer) -> bool:
    """Tell other sites that a site is absent, but tell the site that it is not, so that both reveal its masks."""
    coalition = _gather(server)
    victim, everyone = coalition.honest[0], frozenset(SITES)
    return _told_apart(coalition, dict.fromkeys(coalition.honest, everyone - {victim}) | {victim: everyone})


def told_apart(server: MaliciousServer) -> bool:
    """Show each honest site a random set that contains it; colluding sites sign all of them."""
    coalition = _gather(server)
    chances = server.rng.random((len(SITES), len(SITES)))
    views = {
        site: frozenset([site, *(other for other, chance in zip(SITES, row, strict=True) if chance < _SHOWN)])
        for site, row in zip(coalition.honest, chances, strict=False)
    }
    return _told_apart(coalition, views)


def _told_apart(coalition: Coalition, views: Mapping[str, frozenset[str]]) -> bool:
    """Have each honest site sign its set, and ask all for their seeds: a set opens only if all its sites signed it."""
    server, run = coalition.server, coalition.run
    transcript, signed = coalition.train(server.plan(run)), dict[str, dict[str, bytes]]()
    for site, seen in views.items():
        signed[site] = coalition.agree(transcript, seen, [site])
        if (site in signed[site]) != (len(seen) >= run.minimum):
            return False
    for seen in dict.fromkeys(views.values()):
        members = [site for site in coalition.honest if site in seen]
        signatures = coalition.agree(transcript, seen, []) | {site: signed[site].get(site, b"") for site in members}
        before = server.state()
        replies = coalition.reveal(transcript, seen, signatures, members)
        agreed = len(seen) >= run.minimum and all(views[site] == seen for site in members)
        if not agreed and not server.refused(replies, before):
            return False
    return not coalition.reads_too_much


def asked_again(server: MaliciousServer) -> bool:
    """Withhold a colluding site's mask once others have revealed theirs, and ask them for the same round again.

    Ask with another attempt, without an honest site or with all of them, or with another plan of the same attempt.
    """
    coalition, rng = _gather(server), server.rng
    run, everyone, honest = coalition.run, frozenset(SITES), coalition.honest
    transcript = coalition.train(server.plan(run))
    revealing = honest[: int(rng.integers(1, len(honest) + 1))]
    coalition.reveal(transcript, everyone, coalition.agree(transcript, everyone, honest), revealing)
    left = [site for site in SITES if site != honest[-1] or rng.integers(2)]
    plan = replace(
        next_attempt(transcript.plan, left, SECONDS),
        attempt=int(rng.integers(1, 3)),
        minimum_cohort=min(run.minimum, len(left)),
    )
    again, before = Order(run.document, plan.to_bytes()), server.state()
    remaining = [site for site in revealing if site in left]
    return server.refused(server.ask(TRAIN, dict.fromkeys(remaining, again)), before) and not coalition.reads_too_much


def signed_for_others(server: MaliciousServer) -> bool:
    """Have a colluding site sign in the name of an honest one; all else is valid."""
    return [_update_for, _agreement_for, _letters_for, _pairs_for][server.rng.integers(4)](_gather(server))


def _update_for(coalition: Coalition) -> bool:
    """Replace an honest site's update with a made-up one that has a valid code and tag."""
    server, run, victim = coalition.server, coalition.server.runs["few"], coalition.honest[0]
    transcript, disk = server.collect(run), coalition.disk
    plan, keys, manifest = transcript.plan, disk.keyring.find(transcript.plan.keys), run.manifest
    checkpoint, charge = disk.checkpoint(manifest, run.digest), disk.ledger.find(run.digest, plan.round)
    if charge is None:  # impossible: the colluding site took part
        raise LookupError
    bound, weight, layout = checkpoint.update_bound, manifest.weight(victim), checkpoint.model.layout
    nothing = PrivateUpdate(np.zeros(layout.size, dtype=np.float32), charge)
    packed = pack(nothing, weight, replace(manifest.packing, update_bound=bound), Randomness.fresh())
    encrypted = keys.decryption.encrypt(keys.tag.tag(mask(packed, None), plan, victim))
    forged = sign_update(
        keys.mac.authenticate(encrypted, plan, victim), plan, layout, victim, disk.signing_key,
        weight=weight, update_bound=bound, mask="",
    )  # fmt: skip
    transcript = replace(transcript, updates=transcript.updates | {victim: forged})
    return server.deliver(run, transcript.sum(transcript.total(*SITES), transcript.contributions(*SITES)))


def _agreement_for(coalition: Coalition) -> bool:
    """Ask honest sites to reveal their masks although one of them signed nothing."""
    server, (victim, *others) = coalition.server, coalition.honest
    transcript, everyone = coalition.train(server.plan(coalition.run)), frozenset(SITES)
    signatures = coalition.agree(transcript, everyone, others)
    before = server.state()
    signatures[victim] = signatures[coalition.inside[0]]
    return server.refused(coalition.reveal(transcript, everyone, signatures, others), before)


def _letters_for(coalition: Coalition) -> bool:
    """Deliver keys as if an honest site had made them."""
    server, victim = coalition.server, coalition.honest[0]
    keys, before = EpochKeys.generate(server.epoch + 1), server.state()
    letters = write_letters(keys, server.roster, victim, coalition.disk.signing_key)
    return server.refused(server.ask(ACCEPT, {site: Letter(victim, letters[site]) for site in SITES}), before)


def _pairs_for(coalition: Coalition) -> bool:
    """Deliver mask secrets as if an honest site had made them: masks between honest sites would then be known."""
    server = coalition.server
    own = server.accept(*server.lead(server.pick()))
    keys, (victim, *_) = coalition.disk.keyring.find(server.keys), sorted(coalition.honest)
    _, forged = write_pairs(keys, server.roster, victim, coalition.disk.signing_key)
    fooled = [site for site, names in server.share(own | {victim: forged}).items() if site > victim and victim in names]
    shared = server.share(own)
    return not fooled and all(victim in names for site, names in shared.items() if site != victim)


COLLUSION: dict[str, Callable[[MaliciousServer], bool]] = {
    "with a site: a false dropout": false_dropout,
    "with a site: sets told apart": told_apart,
    "with a site: a round asked again": asked_again,
    "with a site: others' signatures": signed_for_others,
}
"""The attacks, by their name in the table."""

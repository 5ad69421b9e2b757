"""Runs with update_norm: honest ones open, liars' do not, and proofs are shown under the rules of a mask's seed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client.flower import open_site
from client.round import norms
from client.round import train_round as rounds
from client.round.admission import Round, admit
from client.round.aggregate import UnopenedError
from client.round.masking import prove, reveal
from client.round.norms import shorten
from privacy.crypto.norm_signature import sign_proof
from privacy.crypto.norms import prove_norm
from privacy.crypto.pedersen import BYTES
from privacy.crypto.signing import SIGNATURE_BYTES
from privacy.errors import AuthenticityError, ProtocolError
from tests.client.round.masked_rounds import (
    COHORT,
    MASKED,
    breaking,
    headers,
    open_at,
    plan_of,
    signatures,
    signed_by,
    summed,
    updates_of,
)
from tests.federations import SETTINGS, FederationMaker, charges_of, models_of, restart, run_with, signed_run
from transport.mask_messages import VALUES
from transport.messages import PROVE

if TYPE_CHECKING:
    from client.state.checkpoint import Checkpoint
    from privacy.codec.envelope import SignedUpdate
    from privacy.crypto.norm_proof import Statement
    from privacy.crypto.signing import PrivateKey
    from privacy.crypto.summation import EncryptedSum
    from simulations.engine.federation import Federation

NORM = 0.05
BOUNDED = replace(MASKED, encryption=replace(MASKED.encryption, update_norm=NORM))
QUIET = replace(SETTINGS, rounds=2, encryption=replace(BOUNDED.encryption, update_norm=1e6))


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(BOUNDED)


class Played:
    """A round up to the seeds of all masks, and what sites prove of their updates then."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.plan = plan_of(federation)
        self.updates = updates_of(federation, self.plan)
        agreed = signed_by(federation, self.plan, self.updates)
        self.signatures, pairs = signatures(agreed), {site: sealed for site, (_, sealed) in agreed.items()}
        self.summed = summed(federation, self.plan, self.updates, {}, pairs).digest
        seeds = {site: self.reveal(site) for site in COHORT}
        self.total = summed(federation, self.plan, self.updates, seeds, pairs)

    def round(self, site: str) -> Round:
        return admit(open_site(self.federation.paths[site]), signed_run(self.federation)[0]).round(self.plan)

    def reveal(self, site: str, digest: str | None = None) -> bytes:
        digest = self.summed if digest is None else digest
        return reveal(self.round(site), headers(self.updates), self.signatures, digest)

    def prove(self, site: str, total: EncryptedSum | None = None, digest: str | None = None) -> bytes:
        total_ = replace(total or self.total, c0=(), codes=b"")
        return prove(self.round(site), total_, self.signatures, self.summed if digest is None else digest)

    def proved(self) -> EncryptedSum:
        return replace(self.total, proofs=tuple(self.prove(site) for site in COHORT))


# --- Whole runs -----------------------------------------------------------------------------------------------------


def test_a_run_with_a_generous_norm_ends_with_the_same_model_as_one_without(make_federation: FederationMaker) -> None:
    plain = make_federation(replace(SETTINGS, rounds=2), name="plain")
    bounded = make_federation(QUIET, name="bounded")
    assert [event["released"] for event in run_with(plain) + run_with(bounded)] == [True] * 4
    assert len({file[-12:] for folder in (plain, bounded) for file in models_of(folder).values()}) == 1


def test_updates_are_cut_to_the_norm_and_the_run_goes_on_over_a_dropout(federation: Federation) -> None:
    first, second = run_with(federation, breaking(federation, "west", "train"))
    for event in (first, second):
        assert (event["released"], event["attempts"], event["sites"]) == (True, 1, ["east", "north", "south"])
    assert len({file[-12:] for site, file in models_of(federation).items() if site != "west"}) == 1


def _too_long(monkeypatch: pytest.MonkeyPatch, liar: str) -> None:
    """Have a site send an update three times as long as its packed values may be, and all others honest ones."""
    make = rounds._make_update

    def lie(current: Round, checkpoint: Checkpoint) -> SignedUpdate:
        with pytest.MonkeyPatch.context() as patch:
            if current.site.name == liar:
                patch.setattr(rounds, "shorten", lambda vector, _: np.multiply(vector, 40.0, out=vector))
            return make(current, checkpoint)

    monkeypatch.setattr(rounds, "_make_update", lie)


def test_a_site_that_sends_a_long_update_cannot_prove_it_and_is_named(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _too_long(monkeypatch, "west")
    first, second = run_with(federation)
    assert (first["released"], list(first["problems"])) == (False, ["west"])
    assert "without the proof of west" in first["reason"]
    assert "exceeds the run's update_norm" in first["problems"]["west"]
    assert (second["released"], second["sites"]) == (True, ["east", "north", "south"])


def test_a_site_that_withholds_its_proof_ends_the_round_and_is_left_out_of_the_next(federation: Federation) -> None:
    first, second = run_with(federation, breaking(federation, "west", PROVE.name))
    assert (first["released"], first["problems"]) == (False, {"west": "“the line broke”"})
    assert "without the proof of west" in first["reason"]
    assert (second["released"], second["sites"]) == (True, ["east", "north", "south"])


def test_a_site_that_signs_a_false_proof_is_left_out_and_the_round_repeated(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(statement: Statement, numbers: list[int], secrets: dict[str, bytes]) -> bytes:
        proof = prove_norm(statement, numbers, secrets)
        return proof if statement.site != "west" else _false(proof)

    monkeypatch.setattr(norms, "prove_norm", lie)
    first, second = run_with(federation)
    for event in (first, second):
        assert (event["released"], event["sites"]) == (True, ["east", "north", "south"])
    assert "a false norm proof" in first["problems"]["west"]


def test_an_unsigned_proof_counts_as_withheld(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees it. Only sites could see that it does not hold, and would take it for the server's doing."""

    def lie(proof: bytes, subject: bytes, key: PrivateKey) -> bytes:
        signed = sign_proof(proof, subject, key)
        return signed if key != _key_of(federation, "west") else bytes(SIGNATURE_BYTES) + proof

    monkeypatch.setattr(norms, "sign_proof", lie)
    first, second = run_with(federation)
    assert (first["released"], list(first["problems"])) == (False, ["west"])
    assert "without the proof of west" in first["reason"]
    assert (second["released"], second["sites"]) == (True, ["east", "north", "south"])


# --- What opens -----------------------------------------------------------------------------------------------------


def test_a_sum_opens_with_every_proof_and_no_other(federation: Federation) -> None:
    played = Played(federation)
    total = played.proved()
    east, *others = total.proofs
    flipped = east[:-1] + bytes([east[-1] ^ 1])
    wrong: dict[str, tuple[bytes, ...]] = {
        "without proofs": (),
        "one too few": tuple(others),
        "one is empty": (b"", *others),
        "another site's": (others[0], *others),
        "altered": (flipped, *others),
        "cut": (east[:SIGNATURE_BYTES], *others),
        "false, and signed": (_signed(played, "east", _false(east[SIGNATURE_BYTES:])), *others),
    }
    for fault, proofs in wrong.items():
        with pytest.raises(UnopenedError) as caught:
            open_at(federation, "north", replace(total, proofs=proofs))
        # What a site signed is its own; what is not signed at all, the server's.
        assert caught.value.refusal.liars == (["east"] if fault == "false, and signed" else []), fault
        _forget_refusal(federation, played)
    open_at(federation, "north", total)


def test_a_proof_of_another_sum_does_not_help(federation: Federation) -> None:
    played = Played(federation)
    total = played.proved()
    codes = bytes([total.codes[0] ^ 1]) + total.codes[1:]
    with pytest.raises(UnopenedError):
        open_at(federation, "north", replace(total, codes=codes))
    _forget_refusal(federation, played)
    open_at(federation, "north", total)


def test_a_proof_about_another_update_spoils_the_sum(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """West sends a long update, and commits to the projections of nothing, which are short."""
    _too_long(monkeypatch, "west")
    played = Played(federation)
    with pytest.raises(ProtocolError, match="exceeds the run's update_norm"):
        played.prove("west")
    honest = {site: played.prove(site) for site in COHORT if site != "west"}
    monkeypatch.setattr("client.round.masking._unmasked", lambda *_: iter(()))
    total = replace(played.total, proofs=tuple(honest.get(site) or played.prove(site) for site in COHORT))
    for site in COHORT:
        with pytest.raises(UnopenedError) as caught:
            open_at(federation, site, total)
        assert caught.value.refusal.why == VALUES  # nobody can tell whose they are: later rounds close in on it
        with pytest.raises(UnopenedError, match="has already refused a sum") as again:  # noted, as after a wrong tag
            open_at(federation, site, total)
        assert again.value.refusal == caught.value.refusal  # its reply may have been lost


def _false(proof: bytes) -> bytes:
    """Return a proof with another last scalar."""
    return proof[:-BYTES] + bytes([proof[-BYTES] ^ 1]) + proof[1 - BYTES :]


def _key_of(federation: Federation, site: str) -> PrivateKey:
    return open_site(federation.paths[site]).signing_key


def _signed(played: Played, site: str, proof: bytes) -> bytes:
    """Return what a site would have signed, had it made this proof."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "prove_norm", lambda *_: proof)
        return played.prove(site)


def _forget_refusal(federation: Federation, played: Played) -> None:
    """Have north forget that it refused the sum, as if it had not come yet."""
    notes = federation.paths["north"] / "outbox" / f"{played.plan.run[:16]}.commitments"
    kept = [line for line in notes.read_text().splitlines() if not line.startswith(("refusing", "evidence"))]
    notes.write_text("".join(f"{line}\n" for line in kept))


# --- When a site proves ---------------------------------------------------------------------------------------------


def test_a_seed_is_revealed_for_one_sum_and_nothing_proved_of_another(federation: Federation) -> None:
    played = Played(federation)
    restart(federation, "north")
    assert played.reveal("north")  # a retry
    for wrong in ("5a" * 32, ""):
        for ask in (played.reveal, lambda site, digest: played.prove(site, digest=digest)):
            with pytest.raises(
                ProtocolError, match=r"was already recorded with another value|does not say for which sum"
            ):
                ask("north", wrong)
    assert played.prove("north")


def test_nothing_is_proved_before_all_have_signed_and_revealed_their_seeds(federation: Federation) -> None:
    played = Played(federation)
    parts = played.total.contributions
    withheld = replace(played.total, contributions=(replace(parts[0], reveal=b""), *parts[1:]))
    with pytest.raises(AuthenticityError, match="signature of this seeds"):
        played.prove("north", withheld)
    played.signatures = played.signatures | {"west": bytes(64)}
    with pytest.raises(AuthenticityError):
        played.prove("north")


def test_in_a_run_without_a_norm_nothing_is_proved(make_federation: FederationMaker) -> None:
    played = Played(make_federation(MASKED))
    with pytest.raises(ProtocolError, match="has no update_norm"):
        played.prove("north")
    open_at(played.federation, "north", played.total)


def test_a_site_that_proves_again_proves_the_same(federation: Federation) -> None:
    played = Played(federation)
    once, again = played.prove("north"), played.prove("north")
    first = slice(SIGNATURE_BYTES, SIGNATURE_BYTES + 32)
    assert once[first] == again[first]  # the commitment; everything else is drawn again
    assert once != again
    assert charges_of(federation, "north") == 1


# --- Cutting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 70_000])
def test_an_update_is_cut_to_the_norm_and_a_shorter_one_left_alone(size: int) -> None:
    vector = np.full(size, 0.5, np.float32)
    before, norm = vector.copy(), 0.5 * size**0.5
    for allowed in (None, 1.01 * norm):
        shorten(vector, allowed)
        assert (vector == before).all()
    shorten(vector, norm / 4)
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(norm / 4, rel=1e-6)

"""Every check of every reader is switched off, one at a time: each time, a bad vector is read differently."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from privacy.errors import CloisterError
from tests.privacy.mutant_fields import FieldMutant, field_mutants
from tests.privacy.mutants import Mutant, mutants_of, refusing_functions
from tests.privacy.readers import ANSWERED, READERS
from tests.privacy.vectors import parts_of, stored
from transport.messages import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

_MESSAGES = [f"message {kind}" for kind in KINDS]
_REPLIES = [f"reply {kind}" for kind in ANSWERED]
_UPDATES = ["update", "masked update"]
_SUMS = ["sum", "large sum"]


def _all(*functions: str, by: list[str]) -> dict[str, list[str]]:
    return dict.fromkeys(functions, by)


# Every function that refuses something, by module, and which kinds of bad vectors it reads.
READ_BY: dict[str, dict[str, list[str]]] = {
    "privacy.crypto.signing": {
        "verify": ["manifest", "roster", "header", "letter", "pair"],
        "SignedDocument.open": ["manifest", "roster", "letter"],
    },
    "privacy.run.roster": {
        "Roster.__post_init__": ["roster"],
        "Roster.member": ["header", "letter", "pair"],
        "open_roster": ["roster"],
    },
    "privacy.run.manifest": {
        "Manifest.check_valid": ["manifest"],
        "open_run": ["manifest"],
        "open_manifest": ["manifest"],
    },
    "privacy.run.people": {"not_a_role": ["roster"]},
    "privacy.run.settings": _all(
        "Privacy.__post_init__",
        "Cohort.__post_init__",
        "RunSettings.__post_init__",
        "Training.__post_init__",
        "Training.contradiction",
        "Training._of_shared_noise",
        "OneSum.contradiction",
        "Statistics._problem",
        "Evaluation._problem",
        "_contradiction",
        "_of_masks",
        "_of_norm",
        by=["manifest"],
    ),
    "privacy.run.plan": {
        "read_plan": ["plan"],
        "check_plan": ["asked"],
        "is_under_way": ["set", "reveal"],
        "check_under_way": ["set", "reveal"],
    },
    "privacy.run.optimizer": _all("Sgd.__post_init__", "check_steps", "_table", by=["manifest"]),
    "privacy.codec.header": {"verify_header": ["header"], "_read": ["header"]},
    "privacy.codec.envelope": {"verify_update": _UPDATES},
    "privacy.crypto.summation": {
        "RunningSum.add": ["addition"],
        "RunningSum.close": ["addition"],
        "check_sum": _SUMS,
        "check_contributions": ["sum", "set"],
        "claimed_site": ["sum"],
    },
    "privacy.codec.ciphertext": {
        "Ciphertexts.read": ["update"],
        "SummedCiphertexts.check": _SUMS,
        "Accumulator.add": ["update"],
        "check_chunks": ["update"],
        "_check_residues": ["update", "sum"],
        "residues": ["update", "sum"],
    },
    "privacy.crypto.mac": {"MacKey.check": ["sum"]},
    "privacy.crypto.tag": {"TagKey.check": ["sum"]},
    "privacy.codec.packing": {"Packing.__post_init__": ["manifest"], "unpack": ["sum"]},
    "privacy.crypto.masking": {
        "open_seed": ["sum"],
        "open_pairs": ["sum"],
        "verify_pairs": ["sum"],
        "verify_seed": ["sum"],
    },
    "privacy.crypto.norm_proof": _all("Proof.read", "all_hold", by=["proof"]),
    "privacy.crypto.norm_signature": _all("verify_proof", by=["proof"]),
    "privacy.crypto.pedersen": _all("read_point", "read_scalar", by=["proof"]),
    "privacy.crypto.agreement": {
        "check_set": ["set", "reveal"],
        "check_repeat": ["reveal"],
        "check_signed": ["reveal"],
        "check_agreed": ["reveal"],
        "agree": ["set"],
        "reveal": ["reveal"],
    },
    "privacy.noise.noise_shares": {"share_of": ["share"]},
    "privacy.crypto.pairs": {"read_pair": ["pair"]},
    "privacy.crypto.key_epoch": {
        "SealingKey.__init__": ["sealing key"],
        "SealingKey.open": ["letter", "pair"],
        "EpochKeys.from_bytes": ["keys"],
        "read_letter": ["letter"],
    },
    "privacy.crypto.encryption": {"DecryptionKey.from_bytes": ["keys"], "DecryptionKey.check_form": ["keys"]},
    "privacy.run.clocks": {"check_clock": ["clocks"]},
    "privacy.ledger.entries": _all(
        "read_entries", "signed_by", "_take", "_lost_heads", "_entry", "_check", by=["ledger"]
    ),
    "privacy.ledger.ledger_head": {"SignedHead.__post_init__": ["message query"]},
    "transport.body": _all("Cutter.take", "Cutter.finish", "split", by=_MESSAGES),
    "transport.parcel": {
        "decode_instruction": _MESSAGES,
        "decode_reply": _REPLIES,
        "_array_record": _MESSAGES,
        "_parse": _MESSAGES,
        "_records": _MESSAGES,
        "_value": _MESSAGES,
    },
    "transport.framing": _all("Assembly.add", "Assembly.complete", "Assembly._check", "Assembly.finish", by=["chunks"]),
    "transport.fields": {
        "array_bytes": _MESSAGES,
        "field": _MESSAGES,
        "check_names": ["reply shared"],
    },
    "transport.run_messages": {
        "content_of": ["reply revealed"],
        "read_readiness": ["readiness"],
        "read_train": ["message train"],
        "_time": ["message query", "readiness"],
        "_check_bound": ["readiness", "reply opened"],
        "read_opened": ["reply opened"],
        "sum_from_arrays": _SUMS,
        "_split": ["sum"],
        "_get_sum": ["message train", "message evaluate"],
        "_chunks": ["reply update"],
    },
    "transport.reports": {
        "_read": ["reply update", "reply opened"],
        "read_report": ["reply update"],
        "read_metrics": ["reply opened"],
    },
    "transport.key_messages": {
        "read_keys": ["reply leader"],
        "read_letters": ["reply leader"],
        "read_shared": ["reply shared"],
        "read_letter_from": ["message query.accept"],
        "_read_pairs": ["message query.pairs", "reply keys"],
        "_read_blobs": ["message query.pairs", "reply leader"],
    },
    "transport.mask_messages": {
        "read_contributors": ["message query.agree"],
        "read_signatures": ["message query.reveal"],
        "read_revealed": ["reply revealed"],
        "read_summed": ["message query.reveal", "message query.prove"],
        "read_proof": ["reply proved"],
        "find_refusal": ["reply refused"],
        "read_body": ["message query.judge"],
    },
    "transport.vote_messages": {"read_votes": ["message query.undo"], "read_undone": ["reply undone"]},
    "privacy.run.votes": {
        "Vote.from_bytes": ["message query.undo"],
        "check_vote": ["votes"],
        "check_rejected": ["votes"],
    },
    "client.state.keyring": {"Keyring.take": ["epoch"]},
    "client.state.commitments": {"Commitments.note": ["set", "reveal"]},
}

# Functions in these modules that read nothing from outside.
OWN: dict[str, dict[str, str]] = {
    "privacy.run.people": {"read_role": "of invitations: see tests/privacy/run", "may": "a table"},
    "privacy.run.settings": {
        "RunSettings.shares_noise": "says what noise a run has",
    },
    "privacy.run.plan": {"RoundPlan.expanded": "says who expands the seeds"},
    "transport.run_messages": {"_reason": "words what content_of refuses"},
    "privacy.codec.envelope": {"sign_update": "of an update that a site makes itself"},
    "privacy.codec.packing": dict.fromkeys(
        ("pack", "pack_with_share", "_check", "PackedStream.residual"), "of an update that a site makes itself"
    ),
    "privacy.crypto.agreement": {
        "_is_proven": "says what stands in a record",
        "check_unchanged": "of an update that a site makes itself",
    },
    "privacy.crypto.masking": {"pairs_digest": "the length is checked before, against the cohort"},
    "privacy.crypto.norm_proof": {
        "Statement.__post_init__": "follows from the manifest, which every site has",
        "prove": "of an update that a site makes itself",
    },
    "privacy.crypto.pedersen": {"generator": "of names that we give"},
    "privacy.crypto.key_epoch": {"seal": "the roster's keys, as they are used"},
    "privacy.ledger.entries": {"_unsigned": "says which line is altered, once one is"},
    "privacy.noise.noise_shares": {"_clipping_norm": "of a run that trains, as all with shared noise do"},
    "transport.framing": dict.fromkeys(
        ("read_roster_request", "measurement_answer", "read_measurement"),
        "of no round: see tests/server/hub and tests/fuzz",
    ),
    "transport.parcel": {"decode_arrays": "the server's own files"},
    "transport.fields": {"lacks": "raises what others ask for"},
    "client.state.keyring": dict.fromkeys(
        ("Keyring.find", "Keyring.shared_with", "Keyring._pairs", "_read_keys"), "a site's own files"
    ),
}

# Checks that another one makes too, before or after, with the same error: why both are there.
TWICE: dict[str, str] = {
    "privacy.crypto.signing.SignedDocument.open: newline": "the payload is empty then, which no document is",
    "privacy.run.settings.Training._of_shared_noise: run.honest_sites < 1": "masks ask for more",
    "privacy.run.settings._contradiction: len(_kinds(run)) != 1": "the kind of a run is its only table",
    "privacy.run.votes.check_rejected: votes.keys() <= set(sites)": "of a roster's members, a run may name only some",
    "privacy.crypto.summation.RunningSum.close: self._c0 is None": "nobody is fewer than the minimum",
    "privacy.codec.ciphertext.Accumulator.add: check_chunks(ciphertexts.chunks, len(self.total), CIPHERTEXT_BYTES)": (
        "updates of one sum have one size"
    ),
    "privacy.codec.ciphertext.residues: len(c0) % C0_BYTES": "lengths are checked before",
    "privacy.codec.packing.Packing.__post_init__: self.cohort < 1": "a run names sites",
    "privacy.codec.packing.unpack: 1 <= contributors": "a sum has contributors",
    "privacy.codec.packing.unpack: contributors <= packing.cohort": "contributors are of the cohort, each once",
    "privacy.codec.packing.unpack: done != size": "lengths are checked before",
    "privacy.codec.packing.unpack: len(block) != packing.ciphertexts(used.size)": "lengths are checked before",
    "privacy.crypto.pedersen.read_point: len(data) != BYTES": "a proof's length is checked before",
    "privacy.crypto.pedersen.read_scalar: len(data) != BYTES": "a proof's length is checked before",
    "privacy.crypto.encryption.DecryptionKey.check_form: np.count_nonzero(values) != weight": "it leaves a remainder",
    "privacy.crypto.encryption.DecryptionKey.from_bytes: len(data) != _KEY_BYTES + _DIGEST_BYTES": (
        "a digest of another length is another one"
    ),
    "transport.parcel.decode_instruction: parcel.WhichOneof('body') != 'records'": "what is asked is missing then",
    "transport.parcel._value: field is None": "what has no name cannot be looked up",
    "transport.framing.Assembly.add: len(self._data) + len(chunk.data) > self._total": "the end is checked too",
    "transport.reports._read: math.isfinite(value)": "what numbers can be has two ends",
    "transport.run_messages.read_train: count <= _MAX_SUMS": "sums that are not there are missed",
    "privacy.run.settings.Encryption.update_bound: Positive as Annotated[float, Field(gt=0)]": "so has the codec",
    "privacy.run.optimizer._table: isinstance(table, dict) and table.get('name') not in names": (
        "the name chooses one of the classes"
    ),
    **{
        f"privacy.run.optimizer.{kind}.name: any str": "the name chooses the class"
        for kind in ("Sgd", "Adam", "AdamW", "Constant", "Cosine", "Linear", "Step")
    },
    "privacy.run.settings.Cohort.sizes: min_length=1": "nobody is fewer than any minimum",
    "privacy.run.settings.Start: strict=False": "text is never converted from anything",
    "privacy.run.people.Person: strict=False": "text is never converted from anything",
    "privacy.run.roster.Member: strict=False": "text is never converted from anything",
    "privacy.run.plan.RoundPlan: extra='ignore'": "what is read over is not in the canonical form",
    "privacy.run.plan.RoundPlan: strict=False": "what was converted is not in the canonical form",
    "privacy.codec.header.UpdateHeader: extra='ignore'": "what is read over is not in the canonical form",
    "privacy.codec.header.UpdateHeader: strict=False": "what was converted is not in the canonical form",
}

FIELDS = {
    "privacy.run.manifest": ("manifest", "privacy.run.manifest", "open_run"),
    "privacy.run.settings": ("manifest", "privacy.run.manifest", "open_run"),
    "privacy.run.optimizer": ("manifest", "privacy.run.manifest", "open_run"),
    "privacy.run.roster": ("roster", "privacy.run.roster", "open_roster"),
    "privacy.run.people": ("roster", "privacy.run.roster", "open_roster"),
    "privacy.run.plan": ("plan", "privacy.run.plan", "read_plan"),
    "privacy.codec.header": ("header", "privacy.codec.header", "verify_header"),
    "privacy.crypto.key_epoch": ("letter", "privacy.crypto.key_epoch", "read_letter"),
}
"""Which kind of vectors a module's documents are, and what reads them."""


@cache
def bad_of(kind: str) -> list[tuple[dict[str, bytes], str]]:
    """Return the parts and errors of all bad vectors of a kind."""
    return [(parts_of(bad), bad["error"]) for bad in stored("bad")["bad"] if bad["kind"] == kind]


def found_in(kind: str, parts: dict[str, bytes]) -> str:
    """Return what comes of reading something: the class of an error, or that there is none."""
    try:
        READERS[kind](parts)
    except CloisterError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001 - of a mutant
        return f"a bug: {error!r}"
    return "nothing"


def is_noticed(mutant: Mutant | FieldMutant, kinds: Sequence[str]) -> bool:
    with mutant.in_place():
        return any(found_in(kind, parts) != error for kind in kinds for parts, error in bad_of(kind))


def missed(mutants: Sequence[Mutant | FieldMutant], kinds: Sequence[str]) -> list[str]:
    """Return which checks no bad vector notices the lack of, but for those that are made twice."""
    return [mutant.name for mutant in mutants if mutant.name not in TWICE and not is_noticed(mutant, kinds)]


def test_no_function_that_refuses_anything_is_left_out() -> None:
    for module, functions in READ_BY.items():
        assert refusing_functions(module) == functions.keys() | OWN.get(module, {}).keys(), module


READ = [(module, name, kinds) for module, functions in READ_BY.items() for name, kinds in functions.items()]


@pytest.mark.parametrize(("module", "function", "kinds"), READ, ids=[f"{module}.{name}" for module, name, _ in READ])
def test_the_bad_vectors_notice_each_check_that_a_reader_lacks(module: str, function: str, kinds: list[str]) -> None:
    assert missed(mutants_of(module, function), kinds) == []


PARTS = 4  # of the fields of one module, so that processes share the work


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("module", FIELDS)
def test_the_bad_vectors_notice_each_bound_that_a_field_lacks(module: str, part: int) -> None:
    kind, *reader = FIELDS[module]
    mutants = field_mutants(module, (reader[0], reader[1]))
    assert missed(mutants[part::PARTS], [kind]) == []

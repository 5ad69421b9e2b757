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
    "privacy.signing": {
        "verify": ["manifest", "roster", "header", "letter", "pair"],
        "SignedDocument.open": ["manifest", "roster", "letter"],
    },
    "privacy.roster": {
        "Roster.__post_init__": ["roster"],
        "Roster.member": ["header", "letter", "pair"],
        "open_roster": ["roster"],
    },
    "privacy.manifest": {
        "Manifest.check_valid": ["manifest"],
        "open_manifest": ["manifest"],
    },
    "privacy.settings": _all(
        "Privacy.__post_init__",
        "Cohort.__post_init__",
        "RunSettings.__post_init__",
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
    "privacy.plan": {"read_plan": ["plan"], "check_plan": ["asked"]},
    "privacy.header": {"verify_header": ["header"], "_read": ["header"]},
    "privacy.envelope": {"verify_update": _UPDATES},
    "privacy.summation": {
        "RunningSum.add": ["addition"],
        "RunningSum.close": ["addition"],
        "check_sum": _SUMS,
        "check_contributions": ["sum", "set"],
        "claimed_site": ["sum"],
    },
    "privacy.ciphertext": {
        "Ciphertexts.read": ["update"],
        "SummedCiphertexts.check": _SUMS,
        "Accumulator.add": ["update"],
        "check_chunks": ["update"],
        "_check_residues": ["update", "sum"],
        "residues": ["update", "sum"],
    },
    "privacy.mac": {"MacKey.check": ["sum"]},
    "privacy.tag": {"TagKey.check": ["sum"]},
    "privacy.packing": {"Packing.__post_init__": ["manifest"], "unpack": ["sum"]},
    "privacy.masking": {"open_seed": ["sum"], "open_pairs": ["sum"], "verify_pairs": ["sum"], "verify_seed": ["sum"]},
    "privacy.norm_proof": _all("Proof.read", "all_hold", by=["proof"]),
    "privacy.norm_signature": _all("verify_proof", by=["proof"]),
    "privacy.pedersen": _all("read_point", "read_scalar", by=["proof"]),
    "privacy.agreement": {
        "check_set": ["set", "reveal"],
        "check_repeat": ["reveal"],
        "check_signed": ["reveal"],
        "check_agreed": ["reveal"],
        "agree": ["set"],
        "reveal": ["reveal"],
    },
    "privacy.shared": {"share_of": ["share"]},
    "privacy.pairs": {"read_pair": ["pair"]},
    "privacy.epoch": {
        "SealingKey.__init__": ["sealing key"],
        "SealingKey.open": ["letter", "pair"],
        "EpochKeys.from_bytes": ["keys"],
        "read_letter": ["letter"],
    },
    "privacy.encryption": {"DecryptionKey.from_bytes": ["keys"], "DecryptionKey.check_form": ["keys"]},
    "privacy.clocks": {"check_clock": ["clocks"]},
    "privacy.entries": _all("read_entries", "signed_by", "_take", "_entry", "_check", by=["ledger"]),
    "privacy.heads": {"SignedHead.__post_init__": ["message query"]},
    "transport.body": _all("Cutter.take", "Cutter.finish", "split", by=_MESSAGES),
    "transport.parcel": {
        "decode_instruction": _MESSAGES,
        "decode_reply": _REPLIES,
        "_array_record": _MESSAGES,
        "_parse": _MESSAGES,
        "_records": _MESSAGES,
        "_value": _MESSAGES,
    },
    "transport.framing": _all("Assembly.add", "Assembly._check", "Assembly.finish", by=["chunks"]),
    "transport.fields": {
        "array_bytes": _MESSAGES,
        "field": _MESSAGES,
        "check_names": ["reply shared"],
    },
    "transport.contents": {
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
    "transport.ceremony": {
        "read_keys": ["reply leader"],
        "read_letters": ["reply leader"],
        "read_shared": ["reply shared"],
        "read_letter_from": ["message query.accept"],
        "_read_pairs": ["message query.pairs", "reply keys"],
        "_read_blobs": ["message query.pairs", "reply leader"],
    },
    "transport.masking": {
        "read_contributors": ["message query.agree"],
        "read_signatures": ["message query.reveal"],
        "read_revealed": ["reply revealed"],
        "read_summed": ["message query.reveal", "message query.prove"],
        "read_proof": ["reply proved"],
        "find_refusal": ["reply refused"],
        "read_body": ["message query.judge"],
    },
    "transport.votes": {"read_votes": ["message query.undo"], "read_undone": ["reply undone"]},
    "privacy.votes": {"Vote.from_bytes": ["message query.undo"], "check_vote": ["votes"], "check_rejected": ["votes"]},
    "client.keyring": {"Keyring.take": ["epoch"]},
    "client.once": {"Once.note": ["set", "reveal"]},
}

# Functions in these modules that read nothing from outside.
OWN: dict[str, dict[str, str]] = {
    "privacy.settings": {
        "RunSettings.shares_noise": "says what noise a run has",
    },
    "privacy.plan": {"RoundPlan.expanded": "says who expands the seeds"},
    "privacy.envelope": {"sign_update": "of an update that a site makes itself"},
    "privacy.packing": dict.fromkeys(("pack", "pack_with_share", "_check"), "of an update that a site makes itself"),
    "privacy.agreement": {
        "_is_proven": "says what stands in a record",
        "check_unchanged": "of an update that a site makes itself",
    },
    "privacy.masking": {"pairs_digest": "the length is checked before, against the cohort"},
    "privacy.norm_proof": {
        "Statement.__post_init__": "follows from the manifest, which every site has",
        "prove": "of an update that a site makes itself",
    },
    "privacy.pedersen": {"generator": "of names that we give"},
    "privacy.epoch": {"seal": "the roster's keys, as they are used"},
    "privacy.entries": {"_unsigned": "says which line is altered, once one is"},
    "privacy.shared": {"_clipping_norm": "of a run that trains, as all with shared noise do"},
    "transport.parcel": {"decode_arrays": "the server's own files"},
    "transport.fields": {"lacks": "raises what others ask for"},
    "client.keyring": dict.fromkeys(
        ("Keyring.find", "Keyring.shared_with", "Keyring._pairs", "_read_keys"), "a site's own files"
    ),
}

# Checks that another one makes too, before or after, with the same error: why both are there.
TWICE: dict[str, str] = {
    "privacy.signing.SignedDocument.open: newline": "the payload is empty then, which no document is",
    "privacy.settings.Training._of_shared_noise: run.honest_sites < 1": "masks ask for more",
    "privacy.settings._contradiction: len(_kinds(run)) != 1": "the kind of a run is its only table",
    "privacy.votes.check_rejected: votes.keys() <= set(sites)": "of a roster's members, a run may name only some",
    "privacy.summation.RunningSum.close: self._c0 is None": "nobody is fewer than the minimum",
    "privacy.ciphertext.Accumulator.add: check_chunks(ciphertexts.chunks, len(self.total), CIPHERTEXT_BYTES)": (
        "updates of one sum have one size"
    ),
    "privacy.ciphertext.residues: len(c0) % C0_BYTES": "lengths are checked before",
    "privacy.packing.Packing.__post_init__: self.cohort < 1": "a run names sites",
    "privacy.packing.unpack: 1 <= contributors": "a sum has contributors",
    "privacy.packing.unpack: contributors <= packing.cohort": "contributors are of the cohort, each once",
    "privacy.packing.unpack: done != size": "lengths are checked before",
    "privacy.packing.unpack: len(block) != packing.ciphertexts(used.size)": "lengths are checked before",
    "privacy.pedersen.read_point: len(data) != BYTES": "a proof's length is checked before",
    "privacy.pedersen.read_scalar: len(data) != BYTES": "a proof's length is checked before",
    "privacy.encryption.DecryptionKey.check_form: np.count_nonzero(values) != weight": "such a key leaves a remainder",
    "privacy.encryption.DecryptionKey.from_bytes: len(data) != _KEY_BYTES + _DIGEST_BYTES": (
        "a digest of another length is another one"
    ),
    "transport.parcel.decode_instruction: parcel.WhichOneof('body') != 'records'": "what is asked is missing then",
    "transport.parcel._value: field is None": "what has no name cannot be looked up",
    "transport.framing.Assembly.add: len(self._data) + len(chunk.data) > self._total": "the end is checked too",
    "transport.reports._read: math.isfinite(value)": "what numbers can be has two ends",
    "transport.contents.read_train: count <= _MAX_SUMS": "sums that are not there are missed",
    "privacy.settings.Encryption.update_bound: Positive as Annotated[float, Field(gt=0)]": "the codec has a bound too",
    "privacy.settings.Cohort.sizes: min_length=1": "nobody is fewer than any minimum",
    "privacy.settings.Start: strict=False": "text is never converted from anything",
    "privacy.roster.Member: strict=False": "text is never converted from anything",
    "privacy.plan.RoundPlan: extra='ignore'": "what is read over is not in the canonical form",
    "privacy.plan.RoundPlan: strict=False": "what was converted is not in the canonical form",
    "privacy.header.UpdateHeader: extra='ignore'": "what is read over is not in the canonical form",
    "privacy.header.UpdateHeader: strict=False": "what was converted is not in the canonical form",
}

FIELDS = {
    "privacy.manifest": ("manifest", "privacy.manifest", "open_manifest"),
    "privacy.settings": ("manifest", "privacy.manifest", "open_manifest"),
    "privacy.roster": ("roster", "privacy.roster", "open_roster"),
    "privacy.plan": ("plan", "privacy.plan", "read_plan"),
    "privacy.header": ("header", "privacy.header", "verify_header"),
    "privacy.epoch": ("letter", "privacy.epoch", "read_letter"),
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

"""What messages say is read back as it was written; records that say something else are refused with a name."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from privacy.clocks import LATEST
from privacy.envelope import Contribution, SignedUpdate
from privacy.errors import MalformedError
from privacy.heads import SignedHead
from privacy.summation import EncryptedSum
from tests.transport.records import contents, names
from transport import ceremony
from transport import contents as messages
from transport.contents import Readiness
from transport.fields import blob
from transport.heads import put_head, read_head

blobs = st.binary(max_size=16)
contributions = st.lists(st.builds(Contribution, blobs, blobs, blobs), max_size=3).map(tuple)
chunks = st.lists(blobs, max_size=12).map(tuple)
sums = st.builds(EncryptedSum, blobs, contributions, chunks, blobs, chunks)
updates = st.builds(SignedUpdate, blobs, blobs, chunks)
reports = st.dictionaries(names, st.floats(allow_nan=False), max_size=3)
integers = st.integers(-(2**63), 2**63 - 1)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
heads = st.builds(SignedHead, digests, st.binary(min_size=64, max_size=64))
times = st.floats(0, LATEST)
readinesses = st.builds(Readiness, names, digests, integers, names, integers, digests, integers, times, blobs)

READERS: dict[str, Callable[[RecordDict], object]] = {
    "lead": ceremony.read_lead,
    "keys": ceremony.read_keys,
    "letters": ceremony.read_letters,
    "letter": ceremony.read_letter_from,
    "manifest": messages.read_manifest,
    "sent": messages.read_sent,
    "readiness": messages.read_readiness,
    "train": messages.read_train,
    "update": messages.read_update,
    "sum": messages.read_sum,
    "opened": messages.read_opened,
    "head": read_head,
}


@given(manifest=blobs, plan=blobs, missed=st.lists(sums, max_size=3))
def test_instructions_are_read_back(manifest: bytes, plan: bytes, missed: list[EncryptedSum]) -> None:
    train = messages.pack_train(manifest, plan, missed)
    assert messages.read_train(train) == (plan, missed)
    assert messages.read_manifest(train) == messages.read_manifest(messages.pack_query(manifest)) == manifest


@given(manifest=blobs, total=sums)
def test_a_sum_is_read_back(manifest: bytes, total: EncryptedSum) -> None:
    content = messages.pack_sum(manifest, total)
    assert (messages.read_manifest(content), messages.read_sum(content)) == (manifest, total)
    assert messages.sum_from_arrays(messages.sum_to_arrays(total)) == total


@given(manifest=blobs, head=st.none() | heads)
def test_a_ledgers_head_is_read_back_beside_what_else_a_message_says(manifest: bytes, head: SignedHead | None) -> None:
    content = put_head(messages.pack_query(manifest), head)
    assert (messages.read_manifest(content), read_head(content)) == (manifest, head)


@pytest.mark.parametrize(("head", "signature"), [("0" * 63, bytes(64)), ("G" * 64, bytes(64)), ("0" * 64, bytes(63))])
def test_a_head_in_another_form_is_refused(head: str, signature: bytes) -> None:
    content = RecordDict({"ledger": ConfigRecord({"head": head, "signature": signature})})
    with pytest.raises(MalformedError, match="a ledger's head in another form"):
        read_head(content)


metrics = st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3)


@given(update=updates, report=reports, readiness=readinesses, model=names, found=metrics)
def test_replies_are_read_back(
    update: SignedUpdate, report: dict[str, float], readiness: Readiness, model: str, found: dict[str, float]
) -> None:
    assert messages.read_update(messages.pack_update(update, report)) == (update, report)
    assert messages.read_readiness(messages.pack_readiness(readiness)) == readiness
    assert messages.read_opened(messages.pack_opened(model, found | {"records": 7.0})) == (
        model,
        found | {"records": 7.0},
    )


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": float("-inf")}, {"records": 0.0}, {"records": -1.0}])
def test_metrics_that_would_poison_an_average_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(MalformedError, match="metrics that can be averaged"):
        messages.read_opened(messages.pack_opened("", {"loss": 1.0, "records": 3.0} | bad))


def _read(reader: Callable[[RecordDict], object], content: RecordDict) -> None:
    """Read records; whatever they are, no other error than ours comes out."""
    with suppress(MalformedError):
        reader(content)


@pytest.mark.parametrize("what", READERS)
@given(content=contents)
def test_any_records_are_read_or_refused(what: str, content: RecordDict) -> None:
    _read(READERS[what], content)


written = st.one_of(
    st.builds(messages.pack_query, blobs),
    st.builds(messages.pack_readiness, readinesses),
    st.builds(messages.pack_train, blobs, blobs, st.lists(sums, max_size=2)),
    st.builds(messages.pack_update, updates, reports),
    st.builds(messages.pack_sum, blobs, sums),
    st.builds(messages.pack_opened, names, reports),
    st.builds(put_head, st.builds(messages.pack_query, blobs), heads),
)
empty: list[ArrayRecord | MetricRecord | ConfigRecord] = [ArrayRecord(), MetricRecord(), ConfigRecord()]
anything = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    blobs,
    st.lists(st.integers(0, 1), max_size=2),
)


@pytest.mark.parametrize("what", READERS)
@given(content=written, data=st.data())
def test_records_in_which_one_thing_is_wrong_are_read_or_refused(
    what: str, content: RecordDict, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(content)))
    record: Any = content[name]
    change = data.draw(
        st.sampled_from(["drop the record", "another kind", "drop a field", "another value", "one more"])
    )
    key = data.draw(st.sampled_from(sorted(record) or [""])) if change != "one more" else data.draw(names)
    if change == "drop the record":
        del content[name]
    elif change == "another kind":
        content[name] = data.draw(st.sampled_from(empty))
    elif change == "drop a field":
        record.pop(key, None)
    elif isinstance(record, ArrayRecord):
        record[key] = Array("uint8", (1,), data.draw(names), data.draw(blobs))
    elif isinstance(record, MetricRecord):
        record[key] = data.draw(st.floats() | st.integers(0, 9) | st.lists(st.floats(), max_size=2))
    else:
        record[key] = data.draw(anything)
    _read(READERS[what], content)


def test_a_number_that_is_no_integer_is_not_taken_for_one() -> None:
    content = messages.pack_train(b"", b"", [])
    run = content["run"]
    assert isinstance(run, ConfigRecord)
    for count in (True, 0.0, "0", -1, 10_001, 2**62):
        run["sums"] = count
        with pytest.raises(MalformedError, match=r"run\.sums"):
            messages.read_train(content)


def test_ciphertexts_in_another_serialisation_are_refused() -> None:
    content = messages.pack_update(SignedUpdate(b"", b"", (b"x",)), {})
    content["ciphertexts"] = ArrayRecord({"0": Array("uint8", (1,), "numpy.ndarray", b"x")})
    with pytest.raises(MalformedError, match=r"ciphertexts\.0"):
        messages.read_update(content)


@pytest.mark.parametrize("names", [("1",), ("0", "2"), ("1", "0"), ("0", "x"), ("00",), ("",)])
def test_chunks_that_are_not_numbered_from_nought_are_refused(names: tuple[str, ...]) -> None:
    content = messages.pack_update(SignedUpdate(b"", b"", ()), {})
    content["ciphertexts"] = ArrayRecord({name: blob(b"x") for name in names})
    with pytest.raises(MalformedError, match="a message lacks ciphertexts"):
        messages.read_update(content)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("c0-0",),
        ("plan",),
        ("codes",),
        ("plan-0", "codes"),
        ("plan", "codes-0"),
        ("plan", "codes", "codes-1"),
        ("plan", "codes", "plan-1"),
        ("plan", "codes", "c0-1"),
        ("plan", "codes", "c0-1", "c0-0"),
        ("plan", "codes", "c0-0", "c0-00"),
        ("plan", "codes", "c2-0"),
        ("plan", "codes", "header-0", "signature-0"),
        ("plan", "codes", "header-0", "seeds-0"),
        ("plan", "codes", "header-0", "signature-0", "seeds-1"),
    ],
    ids=" ".join,
)
def test_arrays_that_are_no_sum_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(MalformedError, match="a message lacks sum"):
        messages.sum_from_arrays(ArrayRecord({name: blob(b"x") for name in names}))

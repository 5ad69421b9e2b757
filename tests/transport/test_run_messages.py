"""What messages say is read back as it was written; records that say something else are refused with a name."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.codec.envelope import Contribution, SignedUpdate
from privacy.crypto.summation import EncryptedSum
from privacy.errors import MalformedError, ProtocolError
from privacy.ledger.ledger_head import SignedHead
from privacy.run.clocks import LATEST
from privacy.run.policy import METRIC_NAME
from privacy.untrusted_text import MOST
from tests.transport.records import config_records, contents, metric_records, names
from transport import key_messages
from transport import run_messages as messages
from transport.fields import SITE, blob
from transport.flower import LEFT, instruction, reply
from transport.ledger_head import find_head, put_head, read_head
from transport.reports import ReportedNumbers
from transport.run_messages import Opened, Readiness

blobs = st.binary(max_size=16)
contributions = st.lists(st.builds(Contribution, blobs, blobs, blobs), max_size=3).map(tuple)
chunks = st.lists(blobs, max_size=12).map(tuple)
sums = st.builds(EncryptedSum, blobs, contributions, chunks, blobs, chunks)
updates = st.builds(SignedUpdate, blobs, blobs, chunks)
reports = st.dictionaries(st.just("epsilon"), st.floats(0, 1e6))
integers = st.integers(-(2**63), 2**63 - 1)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
heads = st.builds(SignedHead, digests, st.binary(min_size=64, max_size=64))
sites = st.from_regex(SITE, fullmatch=True)
counts = st.integers(1, 2**63 - 1)
times = st.floats(0, LATEST)
bounds = st.floats(0, exclude_min=True, allow_infinity=False)
openeds = st.builds(Opened, digests, bounds, blobs)
readinesses = st.builds(
    Readiness,
    sites,
    digests,
    counts,
    digests,
    bounds,
    counts,
    digests,
    counts,
    st.lists(sites, max_size=3, unique=True),
    times,
    blobs,
)
OPENED = Opened("0" * 64, 0.5, b"signature")

READERS: dict[str, Callable[[RecordDict], object]] = {
    "lead": key_messages.read_lead,
    "keys": key_messages.read_keys,
    "letters": key_messages.read_letters,
    "letter": key_messages.read_letter_from,
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
    assert messages.read_manifest(train) == messages.read_manifest(messages.pack_query(manifest, 1.8e9)) == manifest


@given(manifest=blobs, total=sums)
def test_a_sum_is_read_back(manifest: bytes, total: EncryptedSum) -> None:
    content = messages.pack_sum(manifest, total)
    assert (messages.read_manifest(content), messages.read_sum(content)) == (manifest, total)
    assert messages.sum_from_arrays(messages.sum_to_arrays(total)) == total


@given(manifest=blobs, head=st.none() | heads)
def test_a_ledger_head_is_read_back_with_the_rest_of_a_message(manifest: bytes, head: SignedHead | None) -> None:
    content = put_head(messages.pack_query(manifest, 1.8e9), head)
    assert (messages.read_manifest(content), read_head(content)) == (manifest, head)


@pytest.mark.parametrize(("head", "signature"), [("0" * 63, bytes(64)), ("G" * 64, bytes(64)), ("0" * 64, bytes(63))])
def test_a_head_in_another_form_is_refused(head: str, signature: bytes) -> None:
    content = RecordDict({"ledger": ConfigRecord({"head": head, "signature": signature})})
    with pytest.raises(MalformedError, match="malformed ledger head"):
        read_head(content)


metrics = st.dictionaries(st.from_regex(METRIC_NAME, fullmatch=True), st.floats(-3.4e38, 3.4e38), max_size=3)


@given(update=updates, report=reports, readiness=readinesses, opened=openeds, metric_values=metrics)
def test_replies_are_read_back(
    update: SignedUpdate,
    report: dict[str, float],
    readiness: Readiness,
    opened: Opened,
    metric_values: dict[str, float],
) -> None:
    assert messages.read_update(messages.pack_update(update, report)) == (update, ReportedNumbers(report))
    assert messages.read_readiness(messages.pack_readiness(readiness)) == readiness
    assert messages.read_opened(messages.pack_opened(opened, metric_values)) == (opened, ReportedNumbers(metric_values))


@pytest.mark.parametrize(
    "bad",
    [
        {"kept": nan}, {"kept": inf}, {"kept": -inf}, {"kept": 1e300}, {"kept": [1.0]}, {"": 1.0}, {"a\x1b[2J": 1.0},
        {"a" * 41: 1.0}, {"\u202eyccarucca": 1.0},
    ],
    ids=repr,
)  # fmt: skip
def test_an_impossible_metric_is_dropped_with_a_note_and_the_digest_counts(bad: dict[str, Any]) -> None:
    content = messages.pack_opened(OPENED, {"loss": 1.0} | bad)
    opened, report = messages.read_opened(content)
    assert (opened, report.numbers) == (OPENED, {"loss": 1.0})
    assert report.dropped == "1 of 2 numbers in its metrics are invalid, and were left out"


@pytest.mark.parametrize(
    "record", [None, ArrayRecord(), ConfigRecord({"loss": "none"}), {f"m{i}": 1.0 for i in range(17)}]
)
def test_metrics_of_another_form_are_left_out_whole(record: Any) -> None:  # noqa: ANN401 - whatever a member sends
    content = messages.pack_opened(OPENED, {})
    del content["metrics"]
    if record is not None:
        content["metrics"] = MetricRecord(record) if isinstance(record, dict) else record
    opened, report = messages.read_opened(content)
    assert (opened, report.numbers, bool(report.dropped)) == (OPENED, {}, record is not None)


@pytest.mark.parametrize("epsilon", [nan, inf, -inf, -1e-9, 1e300, 1_000_001.0, [0.5]])
@given(update=updates)
def test_an_impossible_epsilon_is_dropped_and_the_update_counts(update: SignedUpdate, epsilon: Any) -> None:  # noqa: ANN401
    read, report = messages.read_update(messages.pack_update(update, {"epsilon": epsilon}))
    assert (read, report.numbers) == (update, {})
    assert "left out" in report.dropped


@given(update=updates, head=config_records | metric_records)
def test_a_malformed_ledger_head_does_not_spoil_the_update(
    update: SignedUpdate, head: ConfigRecord | MetricRecord
) -> None:
    content = messages.pack_update(update, {})
    content["ledger"] = head
    read, report = messages.read_update(content)
    assert read == update
    assert (find_head(content) is None) == (report.dropped != "")


@pytest.mark.parametrize("model", ["", "0" * 63, "A" * 64, "0" * 65, "0" * 64 + "\n", "\x1b[2J" + "0" * 60])
def test_a_malformed_digest_is_refused(model: str) -> None:
    with pytest.raises(MalformedError, match=r"lacks opened\.model"):
        messages.read_opened(messages.pack_opened(replace(OPENED, model=model), {}))


@pytest.mark.parametrize("bound", [0.0, -1.0, inf, nan])
def test_a_malformed_range_is_refused(bound: float) -> None:
    with pytest.raises(MalformedError, match=r"lacks opened\.update_bound"):
        messages.read_opened(messages.pack_opened(replace(OPENED, update_bound=bound), {}))


def test_a_site_that_says_that_it_has_left_has_no_words_of_its_own() -> None:
    with pytest.raises(ProtocolError, match=r"^it is no longer in the roster$"):
        messages.content_of(reply(Error(LEFT, "the server is at fault"), question()))


@given(reason=st.text(min_size=1))
@example(reason="\x1b[2J\x1b]0;owned\x07" * 1000)
@example(reason="no\n    7    3/3  0.001   1.000     0.01")
@example(reason="[red]no[/red] :pile_of_poo: \u202eoo\u2066 ”")
def test_a_reason_is_short_on_one_line_and_in_quotation_marks(reason: str) -> None:
    failed = reply(Error(100, reason), question())
    with pytest.raises(ProtocolError) as caught:
        messages.content_of(failed)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= MOST + 2
    assert (message[0], message[-1]) == ("“", "”")
    assert not set("“”") & set(message[1:-1])
    assert "  " not in message


@pytest.mark.parametrize(
    "changed",
    [{"site": "\x1b[2J"}, {"site": "n" * 33}, {"layout": "x"}, {"size": 0}, {"epoch": -1}, {"latest": -1},
     {"update_bound": 0.0}, {"update_bound": nan}, {"keys": "x"}, {"pairs": ["\x1b[2J"]},
     {"pairs": ["a", "a"]}, {"pairs": [1]}, {"epoch": 0, "keys": "\x1b[2J"}],
    ids=repr,
)  # fmt: skip
def test_an_impossible_readiness_is_refused(changed: dict[str, Any]) -> None:
    readiness = Readiness("north", "0" * 64, 3, "0" * 64, 0.5, 1, "0" * 64, 1, ["south"], 1e9, b"")
    assert messages.read_readiness(messages.pack_readiness(readiness)) == readiness
    with pytest.raises(MalformedError, match="a message lacks readiness"):
        messages.read_readiness(messages.pack_readiness(replace(readiness, **changed)))


def test_a_letter_from_a_name_that_no_site_can_have_is_refused() -> None:
    with pytest.raises(MalformedError, match=r"lacks letter\.leader"):
        key_messages.read_letter_from(key_messages.pack_letter("\x1b[2J" * 100_000, b"letter"))


def question() -> Message:
    """A message to reply to."""
    return instruction(RecordDict(), kind="train", node=12, run_id=7, group="1", ttl=60.0)


def _read(reader: Callable[[RecordDict], object], content: RecordDict) -> None:
    """Read records; whatever they are, no other error than ours comes out."""
    with suppress(MalformedError):
        reader(content)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=40)
@given(content=contents)
def test_any_records_are_read_or_refused(reader: str, content: RecordDict) -> None:
    _read(READERS[reader], content)


written = st.one_of(
    st.builds(messages.pack_query, blobs, st.floats(0, 4e9)),
    st.builds(messages.pack_readiness, readinesses),
    st.builds(messages.pack_train, blobs, blobs, st.lists(sums, max_size=2)),
    st.builds(messages.pack_update, updates, reports),
    st.builds(messages.pack_sum, blobs, sums),
    st.builds(messages.pack_opened, openeds, metrics),
    st.builds(put_head, st.builds(messages.pack_query, blobs, st.floats(0, 4e9)), heads),
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


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=50)
@given(content=written, data=st.data())
def test_records_with_one_mistake_are_read_or_refused(reader: str, content: RecordDict, data: st.DataObject) -> None:
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
    _read(READERS[reader], content)


def test_a_number_that_is_not_an_integer_is_not_accepted_as_one() -> None:
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
def test_chunks_that_are_not_numbered_from_zero_are_refused(names: tuple[str, ...]) -> None:
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
        ("plan", "codes"),
        ("plan", "codes", "contributions-0"),
        ("plan", "contributions"),
    ],
    ids=" ".join,
)
def test_arrays_that_are_not_a_sum_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(MalformedError, match="a message lacks sum"):
        messages.sum_from_arrays(ArrayRecord({name: blob(b"x") for name in names}))


@given(sums, st.data())
def test_contributions_that_are_cut_or_claim_more_than_there_is_are_refused(
    total: EncryptedSum, data: st.DataObject
) -> None:
    arrays = messages.sum_to_arrays(total)
    whole = arrays["contributions"].data
    for other in (whole[: data.draw(st.integers(0, max(len(whole) - 1, 0)))], whole + b"\xff" * 16, whole + b"\0"):
        try:
            read = messages.sum_from_arrays(ArrayRecord({**arrays, "contributions": blob(other)}))
        except MalformedError:
            continue
        # Cut between two contributions: a sum of fewer, which their signatures and the plan then refuse.
        assert read.contributions == total.contributions[: len(read.contributions)]

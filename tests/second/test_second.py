"""A reader that was written from docs/protocol.md alone, and uses nothing of ours, recomputes every golden vector."""

from __future__ import annotations

import ast
import base64
import json
import math
import re
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.second import ledgers, norms, numbers, ring, rounds, sealing, signed, wire
from tests.second.files import (
    REPLIED_TO,
    arrays_of,
    good,
    key_file,
    manifest,
    open_sum,
    parts_of,
    read,
    read_letter,
    read_pair,
    readiness_payload,
    roster,
    stored,
    tag_key,
)
from tests.second.files import decryption_key as saved_key
from tests.second.ring import C0, SEED, N, Q, T
from tests.second.signed import RefusedError

ALLOWED = {"__future__", "cryptography", "numpy", "pytest", "tests"}
KINDS = list(stored("bad")["kinds"])
ROUNDS = {"round": "sum", "large": "large sum"}


def test_the_second_reader_imports_nothing_of_ours() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in ALLOWED | sys.stdlib_module_names, name
                assert top != "tests" or re.fullmatch(r"tests\.second(\.\w+)?", name), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_reader_accepts_good_documents(kind: str) -> None:
    read(kind, good(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_reader_refuses_bad_documents_with_the_same_errors(kind: str) -> None:
    expected = {bad["name"]: bad["error"] for bad in stored("bad")["bad"] if bad["kind"] == kind}
    results = dict.fromkeys(expected, "none")
    for bad in stored("bad")["bad"]:
        if bad["kind"] == kind:
            try:
                read(kind, parts_of(bad))
            except RefusedError as error:
                results[bad["name"]] = error.kind
    assert results == expected


def test_documents_have_their_digests() -> None:
    known = stored("documents")
    assert manifest(known["manifest"].encode())["run"] == known["run"]
    assert signed.read_plan(known["plan"].encode())["digest"] == known["plan_digest"]
    assert signed.digest("roster", known["roster"].encode().partition(b"\n")[2]) == known["roster_digest"]
    assert signed.layout_digest(known["layout"]) == known["layout_digest"]
    values = numbers.packed_floats(known["model"])
    assert signed.model_digest(known["layout"], values) == known["model_digest"]


def test_runs_have_their_steps_and_learning_rates() -> None:
    for known in stored("training")["runs"]:
        settings = manifest(known["manifest"].encode())["settings"]
        assert signed.steps_of(settings["training"]) == known["steps"]
        rates = numbers.rates(settings["training"], known["steps"], settings["rounds"])
        assert rates == pytest.approx(known["rates"], rel=1e-14)


def test_a_layout_with_constants() -> None:
    known = stored("numbers")["constants"]
    beside = [[*description, sha256(bytes.fromhex(values)).hexdigest()] for *description, values in known["constants"]]
    assert signed.layout_digest(known["layout"], beside) == known["layout_digest"]


def wire_of() -> tuple[list[int], bytes, int]:
    """Return the known ciphertext's c0, seed and code."""
    data = b64decode(stored("ciphertext")["wire"])
    return ring.unpack60(data[:C0]), data[C0 : C0 + SEED], int.from_bytes(data[C0 + SEED :], "little")


def test_the_known_key_is_ternary_and_its_transform_is_what_is_saved() -> None:
    secret = ring.secret_of(saved_key())
    assert set(secret) == {-1, 0, 1}
    assert ring.transform([value % Q for value in secret]) == saved_key()


def test_the_known_ciphertext_is_of_the_known_values() -> None:
    known, header = stored("ciphertext"), json.loads(stored("documents")["header"])
    c0, seed, code = wire_of()
    c1, levels = ring.expand(seed), manifest(stored("documents")["manifest"].encode())["levels"]
    assert sha256(b"".join(word.to_bytes(8, "little") for word in c1)).hexdigest() == known["c1"]
    message = ring.decrypt(c0, c1, saved_key())
    unit = numbers.unit_of(1.0, levels, 1.0)
    fields = numbers.fields(known["values"], unit, levels, bytes.fromhex(known["rounding_key"]))
    (row,) = numbers.joined(fields, 3, 16)
    assert message[:-1] == row[:-1]
    assert message[:20] == known["coefficients"]
    plan, nonce = stored("documents")["plan_digest"], header["nonce"]
    tag = ring.inner(ring.alpha(tag_key()), message[:-1]) + ring.pads(tag_key(), "tag", T, plan, nonce, "north", 1)[0]
    assert message[-1] == known["tag"] == tag % T
    computed = ring.inner(ring.rho(tag_key())[0], c0) + ring.pads(tag_key(), "mac", Q, plan, nonce, "north", 1)[0]
    assert code == known["code"] == computed % Q
    assert max(map(abs, ring.noise(c0, c1, saved_key(), message))) <= 22  # 21, and half a rounding
    assert known["digest"] == header["ciphertexts"] == sha256(b64decode(known["wire"])).hexdigest()
    assert known["seeds_digest"] == header["seeds"] == rounds.seeds_digest(seed)


@pytest.mark.parametrize("number", [0, 1], ids=["with seeds", "with c1"])
def test_codes_of_the_known_ciphertext(number: int) -> None:
    known = stored("codes")
    case, secret = known["rounds"][number], bytes.fromhex(known["secret"])
    plan, rho = signed.read_plan(case["plan"].encode()), ring.rho(secret)
    assert [row[:4] for row in rho] == known["rho"]
    pads = ring.pads(secret, "mac", Q, plan["digest"], known["nonce"], known["site"], 4)
    assert (plan["digest"], pads) == (case["digest"], case["pads"])
    c0, seed, _ = wire_of()
    code = ring.inner(rho[0], c0) + pads[0]
    if len(plan["cohort"]) > rounds.LARGE:
        code += ring.inner(rho[1], ring.expand(seed))
    assert (code % Q).to_bytes(8, "little").hex() == case["code"]


def test_masks_of_one_site() -> None:
    known = stored("masks")
    plan, site, own = signed.read_plan(known["plan"].encode()), known["site"], bytes.fromhex(known["seed"])
    seeds = {other: rounds.pair_seed(bytes.fromhex(secret), plan, site, other)
             for other, secret in known["secrets"].items()}  # fmt: skip
    assert {other: seed.hex() for other, seed in seeds.items()} == known["pair_seeds"]
    keys = seeds | {"own": rounds.own_key(own, plan, site)}
    assert {name: ring.residues(key, T, 4) for name, key in keys.items()} == known["streams"]
    (row,) = rounds.masked([[0] * N], own, seeds, plan, site)
    assert [*row[:4], *row[-4:]] == known["masked"]
    values = rounds.commitments(seeds, plan)
    assert (values.hex(), rounds.root(values)) == (known["commitments"], known["pairs"])
    assert rounds.commitment(own) == known["commitment"]


def test_seeds_that_one_site_reveals() -> None:
    known = stored("masks")
    plan, secret = signed.read_plan(known["plan"].encode()), bytes.fromhex(known["secret"])
    header = {"site": known["site"], "mask": known["commitment"], "pairs": known["pairs"]}
    part = rounds.Contribution(b"", b"", b"", bytes.fromhex(known["sealed"]), bytes.fromhex(known["sealed_pairs"]))
    key = bytes.fromhex(signed.member(roster(stored("documents")["roster"].encode()), known["site"])["signing_key"])
    assert rounds.open_reveal(secret, part, plan, header, key).hex() == known["seed"]
    seeds = rounds.open_pairs(secret, part, known["absent"], plan, header, key)
    assert {other: seed.hex() for other, seed in seeds.items()} == {
        absent: known["pair_seeds"][absent] for absent in known["absent"]
    }
    headers = {site: header.encode() for site, header in known["headers"].items()}
    assert rounds.set_digest(headers) == known["set"]
    signed.verify(key, "agree", rounds.statement(plan, headers), bytes.fromhex(known["agreed"]))


def packed_update(site: dict[str, Any], size: int, weight: float, known: dict[str, Any]) -> list[list[int]]:
    """Return the coefficients of a site's update."""
    run = manifest(known["manifest"].encode())
    unit = numbers.unit_of(known["update_bound"], run["levels"], weight)
    fields = numbers.fields(numbers.update_values(size, *site["values"]), unit, run["levels"],
                           bytes.fromhex(site["rounding_key"]))  # fmt: skip
    return numbers.joined(fields, run["fields"], run["bits"])


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_from_updates_to_the_new_model(name: str) -> None:
    known, opened = stored(name), open_sum(good(ROUNDS[name]))
    run, size = manifest(known["manifest"].encode()), sum(math.prod(shape) for _, shape in known["layout"])
    assert opened.plan["digest"] == known["plan_digest"]
    assert known["layout_digest"] == signed.layout_digest(known["layout"])
    model = numbers.model_values(size)
    assert opened.plan["base_model"] == signed.model_digest(known["layout"], numbers.packed_floats(model))
    updates = {site: packed_update(entry, size, run["weights"][site], known) for site, entry in known["sites"].items()}
    for site, entry in known["sites"].items():
        assert entry.get("packed", numbers.words_digest(updates[site])) == numbers.words_digest(updates[site])
        assert opened.headers[site] == json.loads(entry["header"])
    sums = [ring.plus(rows, T) for rows in zip(*updates.values(), strict=True)]
    assert [row[:-1] for row in opened.unmasked] == [row[:-1] for row in sums]
    expected = known["opened"]
    assert numbers.words_digest(opened.decrypted) == expected["decrypted"]
    assert numbers.words_digest(opened.unmasked) == expected["unmasked"]
    assert opened.unmasked[0][:4] == expected["coefficients"]
    weights = [header["weight"] for header in opened.headers.values()]
    fields = numbers.separated(opened.unmasked, run["fields"], run["bits"])[:size]
    mean = numbers.mean_of(fields, weights, known["update_bound"], run["levels"])
    assert (numbers.floats_digest(mean), mean[:4]) == (expected["mean"], expected["first_of_mean"])
    assert numbers.next_bound(max(map(abs, mean)), len(weights), run["update_bound"]) == expected["next_update_bound"]
    after = numbers.plus(model, mean)
    assert signed.model_digest(known["layout"], numbers.packed_floats(after)) == expected["model_digest"]
    assert after[:4] == expected["first_of_model"]


def test_a_masked_round_from_secrets_to_revealed_seeds() -> None:
    known, plan = stored("round"), signed.read_plan(stored("round")["plan"].encode())
    parts = rounds.split(b64decode(known["sum"]["contributions"]))
    assert known["absent"] == [site for site in plan["cohort"] if site not in known["sites"]]
    headers = {site: entry["header"].encode() for site, entry in known["sites"].items()}
    assert rounds.set_digest(headers) == known["set"]
    signatures = {site: bytes.fromhex(entry["agreed"]) for site, entry in known["sites"].items()}
    members = roster(known["roster"].encode())
    rounds.check_agreed(plan, headers, signatures, members)
    assert json.loads(known["agreed"]) == {site: entry["agreed"] for site, entry in known["sites"].items()}
    stripped = [contribution._replace(seeds=b"", reveal=b"", pairs=b"") for contribution in parts]
    assert rounds.split(b64decode(known["shown"])) == stripped
    masks = []
    for part, (site, entry) in zip(parts, known["sites"].items(), strict=True):
        header, own = json.loads(entry["header"]), bytes.fromhex(entry["seed"])
        seeds = {other: rounds.pair_seed(bytes.fromhex(secret), plan, site, other)
                 for other, secret in entry["pair_secrets"].items()}  # fmt: skip
        values = rounds.commitments(seeds, plan)
        assert (values.hex(), rounds.root(values)) == (entry["commitments"], header["pairs"])
        assert [part.header.decode(), part.signature.hex(), part.reveal.hex(), part.pairs.hex()] == [
            entry[name] for name in ("header", "signature", "reveal", "pairs")
        ]
        key = bytes.fromhex(signed.member(members, site)["signing_key"])
        assert rounds.open_reveal(tag_key(), part, plan, header, key) == own
        assert rounds.open_pairs(tag_key(), part, known["absent"], plan, header, key) == {
            other: seeds[other] for other in known["absent"]
        }
        masks.append(rounds.masked([[0] * N] * 2, own, seeds, plan, site))
    opened = open_sum(good("sum"))
    together = [ring.plus(rows, T) for rows in zip(*masks, opened.unmasked, strict=True)]
    assert [row[:-1] for row in together] == [row[:-1] for row in opened.decrypted]


def test_c1_of_a_large_cohort_is_the_sum_of_what_follows_from_the_seeds() -> None:
    assert sha256(good("large sum")["c1"]).hexdigest() == stored("large")["c1"]
    for site in stored("large")["sites"].values():
        assert json.loads(site["header"])["seeds"] == rounds.seeds_digest(bytes.fromhex(site["seeds"]))
    assert [name for name, _ in arrays_of(good("large sum"))][-1] == "c1-0"


@pytest.mark.parametrize(
    "case", stored("numbers")["packing"], ids=lambda case: f"{case['profile']} of {case['cohort']}"
)
def test_packing_in_every_profile(case: dict[str, Any]) -> None:
    count, bits = {"compact": (3, 16), "precise": (2, 24), "dense": (4, 12)}[case["profile"]]
    levels, key = signed.levels(bits, case["cohort"]), bytes.fromhex(stored("numbers")["rounding_key"])
    assert levels == case["levels"]
    rows = []
    for update in case["updates"]:
        values = numbers.update_values(case["size"], update["factor"], case["scale"])
        unit = numbers.unit_of(case["update_bound"], levels, update["weight"])
        fields = numbers.fields(values, unit, levels, key)
        rows.append(numbers.joined(fields, count, bits))
        assert numbers.words_digest(rows[-1]) == update["packed"]
        assert rows[-1][0][:4] == update["first_coefficients"]
        assert numbers.floats_digest(numbers.left_over(values, fields, unit, levels)) == update["left_over"]
    total = [ring.plus(column, T) for column in zip(*rows, strict=True)]
    assert numbers.words_digest(total) == case["sum"]
    weights = [update["weight"] for update in case["updates"]]
    sums = numbers.separated(total, count, bits)
    rounds.check_fields(sums, case["size"], len(weights), levels)
    mean = numbers.mean_of(sums[: case["size"]], weights, case["update_bound"], levels)
    assert (numbers.floats_digest(mean), mean[:4]) == (case["mean"], case["first_of_mean"])


def test_ranges() -> None:
    for case in stored("numbers")["ranges"]:
        assert numbers.next_bound(case["largest"], case["contributors"], case["update_bound"]) == case["next"]


@pytest.mark.parametrize("name", stored("numbers")["algorithms"]["strategies"])
def test_an_algorithm(name: str) -> None:
    known = stored("numbers")["algorithms"]
    (size,), layout, case = known["layout"][0][1], known["layout"], known["strategies"][name]
    strategy = case["strategy"]
    model, state = numbers.model_values(size), numbers.begun(strategy, size)
    for number, entry in enumerate(case["rounds"], start=1):
        mean = numbers.update_values(size, number, 7000)
        there = entry["contributors"]
        model, state = numbers.applied(strategy, known["steps"], known["weights"], there, model, state, mean)
        assert model[:4] == entry["first_of_model"]
        assert entry["model"] == signed.model_digest(layout, numbers.packed_floats(model))
        assert entry["state"] == numbers.state_digest(state)
        assert entry["digest"] == numbers.checkpoint_digest(entry["model"], entry["state"])


@pytest.mark.parametrize("kind", ["averaging", "ema"])
def test_averaging(kind: str) -> None:
    known = stored("numbers")[kind]
    decay = known["ema_decay"]
    layout, size, number_of_rounds = known["layout"], known["layout"][0][1][0], len(known["rounds"])
    first = 1 if decay else number_of_rounds - math.ceil(known["averaging"] * number_of_rounds) + 1
    model, mean = numbers.model_values(size), list[float]()
    for number, entry in enumerate(known["rounds"], start=1):
        model = numbers.plus(model, numbers.update_values(size, number, 7000))
        assert entry["averaged"] == (number >= first)
        mean = numbers.averaged(mean, model, number - first + 1, decay) if number > first else model
        assert entry["model"] == signed.model_digest(layout, numbers.packed_floats(model))
        assert entry["mean"] == signed.model_digest(layout, numbers.packed_floats(mean))
        assert entry["digest"] == numbers.average_digest(layout, model, mean)
        assert entry["first_of_mean"] == mean[:4]


def test_shared_noise() -> None:
    known = stored("numbers")["shared_noise"]
    settings, model = manifest(known["manifest"].encode())["settings"], numbers.model_values(20)
    levels = signed.levels(24, 3)
    length = math.sqrt(math.fsum(value**2 for value in model))
    _, moved, variance = numbers.share(settings, levels, len(model), length)
    assert moved == pytest.approx(known["sensitivity"], rel=1e-12)
    assert variance == pytest.approx(known["variance"], rel=1e-9)
    unit = numbers.unit_of(settings["encryption"]["update_bound"], levels, known["weight"])
    margin = math.isqrt(144 * known["variance"])
    fields = numbers.fields(known["values"], unit, levels, bytes.fromhex(stored("numbers")["rounding_key"]), margin)
    assert [field + z for field, z in zip(fields, known["noise"], strict=True)] == known["fields"]
    assert max(map(abs, known["noise"])) <= margin


def test_statistics() -> None:
    known = stored("numbers")["statistics"]
    assert (
        json.loads(json.dumps(numbers.survey_layout(known["columns"], known["classes"], known["bins"])))
        == known["layout"]
    )
    assert signed.layout_digest(known["layout"]) == known["layout_digest"]
    columns = list(zip(*numbers.kernel(known["bins"]), strict=True))
    for column, edge in zip(columns, known["edges"], strict=True):
        assert list(column) == pytest.approx(edge, abs=1e-12)
        assert math.fsum(value**2 for value in column) == pytest.approx(1)
    vector = numbers.survey(known["columns"], known["classes"], known["bins"], known["values"], known["labels"])
    assert vector == pytest.approx(known["vector"], abs=1e-12)
    assert known["update_bound"] == 2 + 8 * known["noise_multiplier"] / known["largest_size"]


def test_evaluation() -> None:
    known = stored("numbers")["evaluation"]
    assert None in known["metrics"]["odd"]
    vector = numbers.evaluation(known["metrics"], known["losses"], known["loss_bound"])
    assert vector == pytest.approx(known["vector"], abs=1e-9)
    assert numbers.evaluation_layout(list(known["metrics"]), known["loss_bound"]) == known["layout"]
    assert signed.layout_digest(known["layout"]) == known["layout_digest"]


def test_letters() -> None:
    known, members = stored("keys"), roster(stored("documents")["roster"].encode())
    for site, private in known["sealing_keys"].items():
        listed = base64.b64decode(signed.member(members, site)["sealing_key"])
        assert sealing.public_key(bytes.fromhex(private)) == listed
    assert read_letter(good("letter")) == key_file(known["epoch"])
    assert ring.fingerprint(key_file(known["epoch"])) == known["fingerprint"]
    assert read_pair(good("pair")).hex() == known["pair_secret"]


def plain_value(value: object) -> object:
    """Return records as the golden file writes them down."""
    match value:
        case wire.Array(name, dtype, shape, stype, data):
            return [name, dtype, shape, stype, data.hex()]
        case bytes():
            return {"blob": value.hex()}
        case dict():
            return {key: plain_value(item) for key, item in value.items()}
        case list():
            return [plain_value(item) for item in value]
        case _:
            return value


@pytest.mark.parametrize("side", ["messages", "replies"])
def test_bodies_return_what_was_stored(side: str) -> None:
    known = stored("wire")
    for kind, entry in known[side].items():
        body = bytes.fromhex(entry["body"])
        parcel = wire.read_message(body) if side == "messages" else wire.read_reply(body, REPLIED_TO, kind)
        assert plain_value(parcel.arrays) == entry["arrays"]
        assert plain_value(parcel.configs) == entry["configs"]
        assert plain_value(parcel.metrics) == entry["metrics"]
        for array in (entry for entries in parcel.arrays.values() for entry in entries):
            assert (array.dtype, array.shape) == ("uint8", [len(array.data)])
        if side == "messages":
            assert (parcel.kind, parcel.source, parcel.destination) == (kind, 1, known["node"])
            assert parcel.message_id == REPLIED_TO
    assert known["node"] == signed.node_number("south")


def test_failures_chunks_requests_and_receipts() -> None:
    known = stored("wire")
    assert wire.read_body(bytes.fromhex(known["failure"]["body"])).failure == (
        known["failure"]["code"],
        known["failure"]["reason"],
    )
    body, reply_to = wire.assemble([bytes.fromhex(chunk) for chunk in known["chunks"]], 1 << 16)
    assert (body.hex(), reply_to) == (known["messages"]["query.lead"]["body"], REPLIED_TO)
    assert next(wire.message(bytes.fromhex(known["pull"]))) == (1, 0, 1)
    assert list(wire.message(bytes.fromhex(known["receipt"]))) == [(1, 0, 1)]


def test_readiness_and_ledger_heads_of_a_site() -> None:
    known, members = stored("wire"), roster(stored("documents")["roster"].encode())
    key = bytes.fromhex(signed.member(members, "south")["signing_key"])
    records = wire.read_reply(bytes.fromhex(known["replies"]["readiness"]["body"]), REPLIED_TO, "readiness").configs
    readiness, head = records["readiness"], records["ledger"]
    signed.verify(key, "readiness", readiness_payload(readiness, known["run"], known["node"]), readiness["signature"])
    signed.verify(key, "ledger", f"south {known['lineage']} {head['head']}".encode(), head["signature"])
    words, plan = known["words"], signed.read_plan(known["words"]["plan"].encode())["digest"]
    opened, refused, verdict = (words[name] for name in ("opened", "refused", "verdict"))
    header, right = sha256(verdict["header"].encode()).hexdigest(), "right" if verdict["right"] else "wrong"
    for kind, payload in (
        ("opened", f"{plan} {opened['model']} {opened['update_bound']}"),
        ("refused", f"{plan} {refused['why']} {','.join(refused['liars'])}"),
        ("verdict", f"{plan} {header} {right}"),
    ):
        signed.verify(key, kind, payload.encode(), bytes.fromhex(words[kind]["signature"]))


def test_a_ledger_with_lines_of_every_kind() -> None:
    known = stored("ledger")
    lines = ledgers.read_lines(
        known["file"].encode(), known["site"], known["lineage"], bytes.fromhex(known["public_key"])
    )
    for line, key in zip(lines, known["keys"], strict=True):
        ledgers.check_signature(line, known["site"], known["lineage"], bytes.fromhex(key))
    assert lines[-1].head == known["head"]
    charges = [line for line in lines if {"steps", "epsilon"} & line.event.keys()]
    assert [
        {key: item for key, item in line.event.items() if key != "time"} | {"head": line.head} for line in charges
    ] == known["charges"]
    adopted = next(place for place, line in enumerate(lines) if "adopted" in line.event)
    assert lines[adopted].event["adopted"] == known["keys"][adopted - 1] != known["keys"][adopted]


def test_projections_blindings_and_commitments_are_those_of_the_sites() -> None:
    case = stored("norm")
    seeds = {site: bytes.fromhex(entry["seed"]) for site, entry in case["sites"].items()}
    context = norms.context_of(case["plan"], case["set"], case["sum"], seeds)
    assert context.hex() == case["context"]
    assert case["subject"] == case["plan"] + case["set"] + case["sum"]
    for name, point in case["generators"].items():
        kind, index = name.split()
        assert norms.encoded(norms.generator(kind, int(index))).hex() == point
    commitments, sent = norms.NEUTRAL, [0] * case["parameters"]
    for site, entry in case["sites"].items():
        secrets, vector = norms.known(case, site)
        length = norms.longest(
            case["update_norm"], entry["weight"], case["levels"], case["update_bound"], case["parameters"]
        )
        assert (length, f"{norms.blinding(secrets, context, site):064x}") == (entry["length"], entry["blinding"])
        assert norms.projections(context, vector) == entry["projections"]
        commitment = norms.commit(entry["projections"], int(entry["blinding"], 16))
        assert norms.encoded(commitment).hex() == entry["commitment"]
        commitments, sent = norms.add(commitments, commitment), [a + b for a, b in zip(sent, vector, strict=True)]
    assert norms.projections(context, sent) == case["projections_of_sum"]
    assert norms.same(commitments, norms.commit(case["projections_of_sum"], 0))
    assert int(case["limit_of_south"]) == norms.T * case["sites"]["south"]["length"] ** 2

"""A site opens each genuine sum of a round once, and no other sum."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest
from flwr.app import Context, Message, RecordDict

from client.flower import app
from client.round.admission import admit
from client.round.aggregate import open_sum
from client.settings import read_site
from client.site import Site
from privacy.codec.ciphertext import COEFF_MODULUS, pack60, unpack60
from privacy.codec.packing import PLAIN_MODULUS
from privacy.crypto.summation import EncryptedSum
from privacy.errors import RunError
from privacy.run.plan import read_plan
from simulations.engine.federation import Federation
from tests.client.agent_rounds import EVALUATE, QUERY, SITE, ask, train
from tests.federations import (
    SETTINGS,
    SITES,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    run_with,
    signed_run,
    sums_of,
)
from transport import messages as wire
from transport.flower import reply
from transport.run_messages import (
    pack_sum,
    read_opened,
    read_sum,
)


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(replace(SETTINGS, rounds=2))


@pytest.fixture
def total(federation: Federation) -> EncryptedSum:
    """The sum of a first round that no site has opened yet."""
    sums: list[EncryptedSum] = []

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type != EVALUATE:
            return app(message, context)
        sums.append(read_sum(message.content))
        return reply(RecordDict(), message)

    with pytest.raises(RunError, match="nothing was trained"):
        run_with(federation, answer)
    assert models_of(federation) == {}
    return sums[0]


def deliver(federation: Federation, total: EncryptedSum, site: str = SITE) -> Message:
    return ask(federation, EVALUATE, pack_sum(signed_run(federation)[0], total), site)


def test_a_sum_that_is_delivered_twice_is_opened_once(federation: Federation, total: EncryptedSum) -> None:
    first = read_opened(deliver(federation, total).content)
    file = models_of(federation)[SITE]
    assert read_opened(deliver(federation, total).content) == first
    restart(federation, SITE)
    assert read_opened(deliver(federation, total).content) == first
    assert models_of(federation)[SITE] == file


def test_a_round_whose_sum_a_site_has_opened_is_not_trained_again(federation: Federation, total: EncryptedSum) -> None:
    deliver(federation, total)
    plan = replace(read_plan(total.plan), deadline=time.time() + 60)
    charges = charges_of(federation, SITE)
    for file in (federation.paths[SITE] / "outbox").iterdir():
        file.unlink()
    assert "made its update of round 1 and lost it" in str(train(federation, plan).error.reason)
    assert charges_of(federation, SITE) == charges
    for folder in ("ledger", "ledger-heads"):
        rmtree(federation.paths[SITE] / folder)
    assert "has already opened the sum of round 1" in str(train(federation, plan).error.reason)
    assert charges_of(federation, SITE) == 0


def test_all_sites_open_a_sum_to_the_same_file(federation: Federation, total: EncryptedSum) -> None:
    digests = {read_opened(deliver(federation, total, site).content)[0].model for site in SITES}
    assert len(digests) == len(set(models_of(federation).values())) == 1


def _without_one(total: EncryptedSum) -> EncryptedSum:
    return replace(total, contributions=total.contributions[1:])


def _with_one_twice(total: EncryptedSum) -> EncryptedSum:
    return replace(total, contributions=(*total.contributions[:3], total.contributions[0]))


def _with_other_seeds(total: EncryptedSum) -> EncryptedSum:
    first, second, *others = total.contributions
    return replace(total, contributions=(replace(first, seeds=second.seeds), second, *others))


def _of_two(total: EncryptedSum) -> EncryptedSum:
    return replace(total, contributions=total.contributions[:2])


def _of_nothing(total: EncryptedSum) -> EncryptedSum:
    return replace(total, contributions=())


def _with_noise(total: EncryptedSum) -> EncryptedSum:
    (c0,) = total.c0
    return replace(total, c0=(bytes(len(c0) // 2) + c0[len(c0) // 2 :],))


def _cut(total: EncryptedSum) -> EncryptedSum:
    return replace(total, c0=(total.c0[0][:-15],))


def _of_no_chunk(total: EncryptedSum) -> EncryptedSum:
    return replace(total, c0=())


def _with_c1(total: EncryptedSum) -> EncryptedSum:
    return replace(total, c1=total.c0)


def _with_c1_for_seeds(total: EncryptedSum) -> EncryptedSum:
    seedless = tuple(replace(part, seeds=b"") for part in total.contributions)
    return replace(total, contributions=seedless, c1=total.c0)


@pytest.mark.parametrize(
    "change",
    [
        _with_one_twice,
        _with_other_seeds,
        _of_two,
        _of_nothing,
        _cut,
        _of_no_chunk,
        _with_c1,
        _with_c1_for_seeds,
    ],
)
def test_a_sum_of_other_contributions_is_refused_and_the_genuine_one_opens(
    federation: Federation, total: EncryptedSum, change: Callable[[EncryptedSum], EncryptedSum]
) -> None:
    assert deliver(federation, change(total)).has_error()
    assert models_of(federation) == {}
    assert deliver(federation, total).has_content()


@pytest.mark.parametrize("change", [_without_one, _with_noise])
def test_a_sum_that_does_not_decrypt_to_one_is_refused_and_so_is_every_other_of_its_plan(
    federation: Federation, total: EncryptedSum, change: Callable[[EncryptedSum], EncryptedSum]
) -> None:
    assert "it is not the sum of its contributors' updates" in str(deliver(federation, change(total)).error.reason)
    assert "it opens no other sum of that plan" in str(deliver(federation, total).error.reason)
    assert models_of(federation) == {}


def test_a_sum_with_a_number_added_by_the_server_is_opened_by_no_site(
    federation: Federation, total: EncryptedSum
) -> None:
    words = unpack60(total.c0[0]).copy()
    words[0] = (int(words[0]) + 1000 * COEFF_MODULUS // PLAIN_MODULUS) % COEFF_MODULUS
    assert deliver(federation, replace(total, c0=(pack60(words),))).has_error()


def test_a_sum_of_another_run_is_not_opened(federation: Federation, total: EncryptedSum) -> None:
    federation.sign(replace(SETTINGS, rounds=2))
    assert "another run" in str(deliver(federation, total).error.reason)
    assert models_of(federation) == {}


def test_processes_of_one_site_go_on_from_each_others_models(make_federation: FederationMaker) -> None:
    # Flower's own engine answers each message in any of its processes.
    federation = make_federation(replace(SETTINGS, rounds=4))
    run_with(federation)
    path, expected = federation.paths[SITE], models_of(federation)[SITE]
    rmtree(path / "models")
    document, manifest, run = signed_run(federation)
    processes = [Site(read_site(path)) for _ in range(2)]
    for number, total in enumerate(sums_of(federation)):
        opening = processes[number % 2]
        opened = open_sum(admit(opening, document), total)
        assert {process.checkpoint(manifest, run).model.digest for process in processes} == {opened.model.digest}
    assert models_of(federation)[SITE] == expected


def test_a_damaged_checkpoint_is_reported_at_the_site_and_refused(
    federation: Federation, total: EncryptedSum, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(federation, total)
    (path,) = (federation.paths[SITE] / "models").iterdir()
    _damage(path)
    restart(federation, SITE)
    answer = ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0])))
    assert answer.has_error()
    assert str(path) in caplog.text
    assert str(path) not in str(answer.error.reason)


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

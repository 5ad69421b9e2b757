"""Shared noise at real sites: the sum carries what was promised, an update its share, and nothing is drawn twice."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, MessageType
from numpy.typing import NDArray

from client.data.site_records import InMemory
from client.flower import app, open_site
from client.round.admission import AdmittedRun, admit
from client.round.masking import recover
from client.round.readiness import get_ready
from client.round.train_round import train_round
from client.site import Site
from privacy.accounting.accounting import Mechanism
from privacy.codec.packing import pack_with_share, unpack
from privacy.errors import ConfigError, ProtocolError, RefusedError, RunError
from privacy.ledger.ledger import Charge, Release
from privacy.noise.noise_shares import Share, share_for
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.plan import RoundPlan
from privacy.run.settings import Encryption, Privacy
from simulations.engine.federation import Federation, SiteTerms
from tests import studies
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    keys_of,
    models_of,
    node_of,
    restart,
    rounds_of,
    run_with,
    signed_run,
    task_name,
)
from tests.tables import table
from transport.flower import reply

STILL = task_name(studies.Still)
SHARED = replace(
    SETTINGS,
    task=STILL,
    rounds=2,
    privacy=Privacy(max_grad_norm=1.0, noise_multiplier=2.0, noise="shared"),
    encryption=Encryption(update_bound=0.5, profile="precise", collusion_resistant=True),
    seed=None,
)
WILLING = replace(TERMS, tasks=(STILL, task_name(studies.Tiny), task_name(studies.Wide)), shared_noise=True)
TERMS_OF_ALL: dict[str, SiteTerms] = dict.fromkeys(SITES, WILLING)
COHORT = tuple(sorted(SITES))


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(SHARED, TERMS_OF_ALL)


def plan_of(federation: Federation, attempt: int = 1, cohort: Sequence[str] = COHORT, minimum: int = 3) -> RoundPlan:
    """A plan of the first round."""
    document, manifest, run = signed_run(federation)
    ready = get_ready(admit(open_site(federation.paths["north"]), document), node_of(federation, "north"))
    return RoundPlan(
        run=run, round=1, attempt=attempt, cohort=tuple(cohort), roster_version=manifest.roster_version, epoch=1,
        keys=keys_of(federation, "north").fingerprint, minimum_cohort=minimum, deadline=time.time() + 60,
        base_model=ready.model,
    )  # fmt: skip


def share_at(federation: Federation, site: str = "north") -> tuple[Site, Manifest, Share]:
    """A site, its run, and its share of the noise in the first round."""
    opened = open_site(federation.paths[site])
    _, manifest, run = signed_run(federation)
    return opened, manifest, share_for(manifest, opened.checkpoint(manifest, run).model)


def sent_by(federation: Federation, site: str, plan: RoundPlan) -> NDArray[np.float64]:
    """What a site's last update holds once its own masks and encryption are off, in levels from the middle."""
    opened, manifest, _ = share_at(federation, site)
    packed = recover(AdmittedRun(opened, manifest, plan.run, opened.algorithm(manifest)).round(plan))
    assert packed is not None
    weight, size = manifest.weight(site), opened.study(STILL).layout(manifest.settings).size
    return unpack(packed.blocks, size, [weight], manifest.packing).vector / np.float64(manifest.packing.unit(weight))


def holds(noise: NDArray[np.floating], variance: float) -> bool:
    """Whether noise has this variance, to five standard deviations of what would be found, and rounding's."""
    return abs(float(noise.var()) / (variance + 0.25) - 1) < 5 * math.sqrt(2 / noise.size)


# --- Whole runs -----------------------------------------------------------------------------------------------------


def test_all_sites_end_with_one_model_and_each_round_added_the_noise_of_all(federation: Federation) -> None:
    site, manifest, share = share_at(federation)
    run = signed_run(federation)[2]
    before = site.checkpoint(manifest, run).model.vector.astype(np.float64)
    events = run_with(federation)
    assert [(event["released"], event["sites"]) for event in events] == [(True, list(COHORT))] * 2
    assert len(set(models_of(federation).values())) == 1
    after = restart(federation, "north").checkpoint(manifest, run)
    assert after.update_bound == SHARED.encryption.update_bound  # the range does not follow the sums
    weights = sum(manifest.weight(member) for member in COHORT)
    noise = (after.model.vector - before) * weights / manifest.packing.unit(1.0)
    assert holds(noise, 2 * 4 * share.variance)
    # The three that suffice, less the one that may collude, would have made all that was promised.
    assert 2 * share.variance >= (2.0 * share.sensitivity) ** 2


def test_the_charge_is_the_promised_noise_and_nothing_is_carried_over(federation: Federation) -> None:
    run_with(federation)
    for site in COHORT:
        assert charges_of(federation, site) == 2
        charged = open_site(federation.paths[site]).ledger.mechanisms()
        assert [(mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps) for mechanism in charged] == [
            (2.0, 1.0, 1)
        ] * 2
        left = {file.suffix for file in (federation.paths[site] / "outbox").iterdir()}
        assert left == {".update", ".commitments"}
    assert signed_run(federation)[1].round_cost == Mechanism(2.0, 1.0, 1, discrete=True)


def test_below_the_minimum_cohort_no_sum_opens_and_no_mask_is_requested(federation: Federation) -> None:
    gone = {node_of(federation, site) for site in ("east", "west")}
    types: list[str] = []

    def answer(message: Message, context: Context) -> Message:
        types.append(message.metadata.message_type)
        if message.metadata.dst_node_id in gone and message.metadata.message_type == MessageType.TRAIN:
            return reply(Error(1, "the line broke"), message)
        return app(message, context)

    with pytest.raises(RunError, match="no round had enough sites"):
        run_with(federation, answer)
    assert [event["released"] for event in rounds_of(federation)] == [False, False]
    assert not models_of(federation)
    assert "query.reveal" not in types
    plan = plan_of(federation, 2, COHORT[:2], minimum=2)
    with pytest.raises(ProtocolError, match="its cohort may be smaller than the 3 sites of the manifest"):
        train_round(admit(open_site(federation.paths["east"]), signed_run(federation)[0]).round(plan), [])


# --- One update -----------------------------------------------------------------------------------------------------


def test_an_update_by_itself_carries_its_share_and_all_together_their_sum(federation: Federation) -> None:
    plan, document = plan_of(federation), signed_run(federation)[0]
    share = share_at(federation)[2]
    sent = {}
    for site in COHORT:
        train_round(admit(open_site(federation.paths[site]), document).round(plan), [])
        sent[site] = sent_by(federation, site, plan_of(federation, 2))
        assert holds(sent[site], share.variance)
    assert holds(np.sum(list(sent.values()), axis=0), 4 * share.variance)


def test_another_attempt_sends_the_same_noise_under_other_masks_for_one_charge(federation: Federation) -> None:
    site, document = open_site(federation.paths["north"]), signed_run(federation)[0]
    first = train_round(admit(site, document).round(plan_of(federation)), [])
    before = sent_by(federation, "north", plan_of(federation, 2))
    site = restart(federation, "north")
    fewer = plan_of(federation, 2, [member for member in COHORT if member != "west"])
    second = train_round(admit(site, document).round(fewer), [])
    assert first.chunks != second.chunks
    np.testing.assert_array_equal(sent_by(federation, "north", plan_of(federation, 3)), before)
    assert charges_of(federation, "north") == 1


@pytest.mark.parametrize("site", ["north", "east"])
def test_one_record_moves_the_levels_by_at_most_the_sensitivity_of_the_noise(
    make_federation: FederationMaker, site: str
) -> None:
    """Through training, rounding and packing: with a record whose gradient is clipped, and without it."""
    settings = replace(SHARED, task=task_name(studies.Wide))
    federation = make_federation(settings, TERMS_OF_ALL)
    opened, manifest, share = share_at(federation, site)
    study, model = opened.study(settings.task), opened.checkpoint(manifest, "run").model
    inputs, targets = table(study.training)
    levels = []
    for added in (torch.empty(0, 2), torch.tensor([[300.0, -200.0]])):
        more = InMemory(torch.cat([inputs, added]), torch.cat([targets, 1e3 * torch.ones(len(added), 1)]))
        study.__dict__["training"] = more
        update = study.release(manifest, 1, model, Randomness.seeded(1))
        charge = Charge(Release("run", 1, 1), manifest.round_cost, "")
        packed = pack_with_share(
            update, charge, manifest.weight(site), manifest.packing, Randomness.seeded(2), share.variance
        )
        mean = unpack(packed.blocks, model.vector.size, [manifest.weight(site)], manifest.packing)
        levels.append(mean.vector / np.float64(manifest.packing.unit(manifest.weight(site))))
    moved = float(np.linalg.norm(levels[1] - levels[0]))
    assert 0.95 * share.sensitivity < moved <= share.sensitivity


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_a_site_that_did_not_opt_in_takes_no_part(make_federation: FederationMaker) -> None:
    federation = make_federation(SHARED, TERMS_OF_ALL | {"north": replace(WILLING, shared_noise=False)})
    with pytest.raises(RefusedError, match="does not allow shared noise: its policy says shared_noise = false"):
        admit(open_site(federation.paths["north"]), signed_run(federation)[0])
    admit(open_site(federation.paths["south"]), signed_run(federation)[0])


def test_a_model_too_large_for_the_levels_is_refused_before_anything_is_charged(
    make_federation: FederationMaker,
) -> None:
    coarse = replace(SHARED, encryption=replace(SHARED.encryption, update_bound=8.0))
    federation = make_federation(coarse, TERMS_OF_ALL)
    site, document = open_site(federation.paths["north"]), signed_run(federation)[0]
    with pytest.raises(RefusedError, match="north cannot take part: levels are too coarse: for a model of size 16001"):
        get_ready(admit(site, document), node_of(federation, "north"))
    small = make_federation(replace(coarse, task=task_name(studies.Tiny)), TERMS_OF_ALL, name="small")
    base = get_ready(admit(open_site(small.paths["north"]), signed_run(small)[0]), node_of(small, "north"))
    assert base.size == 3
    _, manifest, run = signed_run(federation)
    plan = replace(plan_of(small), run=run, base_model=site.checkpoint(manifest, run).model.digest)
    with pytest.raises(ConfigError, match="levels are too coarse"):
        train_round(admit(site, document).round(plan), [])
    assert charges_of(federation, "north") == 0

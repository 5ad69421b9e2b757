"""A run starts from a backbone that every site has in a file; its model is what was trained over that backbone."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.flower import open_site
from cloister import load_model, save_frozen
from cloister.local import follow, start_agents, start_server
from privacy.errors import RefusedError
from privacy.run.settings import Encryption, Evaluation, Privacy, RunSettings
from privacy.run.tables import Start
from simulations.engine.federation import Federation
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    restart,
    run_with,
    signed_run,
    task_name,
)
from tests.forked import ForkedAgents
from tests.pictures import LocalNorm, Net, Transfer

RUN = replace(
    NOISY, task=task_name(Transfer), rounds=2, encryption=Encryption(update_bound=1.0, collusion_resistant=True)
)
"""Noise, encryption and masks."""
HEAD = {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def pretrained() -> Net:
    """The backbone, with statistics, as somebody trained it on public pictures."""
    torch.manual_seed(77)
    net = Net(frozen=True)
    net.state_dict()["backbone.1.running_mean"].add_(0.25)
    return net


def file_of_backbone(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return save_frozen(pretrained(), folder / "backbone.safetensors")


def started(federation: Federation, settings: RunSettings = RUN) -> None:
    """Give every site the backbone, and sign a run that starts from it."""
    (digest,) = {file_of_backbone(path / "models" / "public") for path in federation.paths.values()}
    federation.sign(replace(settings, start=Start(digest)))


def trained_file(federation: Federation, site: str, name: str = "study") -> Path:
    (path,) = (federation.paths[site] / "models").glob(f"{name}-*.safetensors")
    return path


def test_a_head_is_trained_over_a_backbone_that_stays_as_the_file_has_it(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)
    started(federation)
    assert all(event["released"] for event in run_with(federation))
    (digest,) = {sha256(trained_file(federation, site).read_bytes()).hexdigest() for site in SITES}
    path = trained_file(federation, "north")
    assert set(load_file(path)) == HEAD
    assert path.stat().st_size < 2000
    module = load_model(Transfer(), path)
    for name, value in pretrained().state_dict().items():
        assert torch.equal(module.state_dict()[name], value) == (name not in HEAD), name
    _, manifest, run = signed_run(federation)
    site = restart(federation, "north")
    checkpoint = site.checkpoint(manifest, run)
    assert checkpoint.round == 2
    again = site.study(RUN.task).load_into(Net(frozen=True), checkpoint.model).state_dict()
    assert all(torch.equal(again[name], value) for name, value in module.state_dict().items())

    # The next run needs only the digest of the head's file: that file names the backbone's.
    federation.sign(replace(RUN, name="second", start=Start(digest)))
    assert all(event["released"] for event in run_with(federation))
    second = load_model(Transfer(), trained_file(federation, "north", "second"))
    assert torch.equal(second.state_dict()["backbone.0.weight"], module.state_dict()["backbone.0.weight"])
    evaluation = replace(
        RUN, name="third", rounds=1, start=Start(digest), training=None, evaluation=Evaluation(("near",)),
        privacy=Privacy(noise_multiplier=1.0), encryption=Encryption(),
    )  # fmt: skip
    federation.sign(evaluation)
    (event,) = run_with(federation)
    assert event["released"]


def test_without_the_backbones_file_a_head_is_of_no_use_and_the_site_says_so(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)
    started(federation)
    run_with(federation)
    path = trained_file(federation, "north")
    digest = sha256(path.read_bytes()).hexdigest()
    (federation.paths["north"] / "models" / "public" / "backbone.safetensors").unlink()
    with pytest.raises(RefusedError, match="does not have the initial model, the safetensors file with SHA-256"):
        load_model(Transfer(), path)
    charged = charges_of(federation, "north")
    federation.sign(replace(RUN, name="second", start=Start(digest)))
    open_site.cache_clear()
    event, *_ = run_with(federation)
    assert "put it into the site's folder models/public" in event["problems"]["north"]
    assert charges_of(federation, "north") == charged


def test_a_backbone_with_another_name_or_only_a_part_of_it_is_refused_by_name(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)
    file = federation.paths["north"] / "models" / "public" / "backbone.safetensors"
    file_of_backbone(file.parent)
    whole = load_file(file)
    for wrong, name in (
        ({key: value for key, value in whole.items() if key != "backbone.0.bias"}, r"backbone\.0\.bias"),
        (whole | {"fc.weight": torch.zeros(2, 2)}, r"fc\.weight"),
        (whole | {"head.bias": torch.zeros(1)}, r"head\.weight"),
    ):
        save_file(wrong, file)
        settings = replace(RUN, start=Start(sha256(file.read_bytes()).hexdigest()))
        with pytest.raises(RefusedError, match=rf"does not have the tensors of this run's task: {name}; name another"):
            open_site(federation.paths["north"]).study(RUN.task).start(settings)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_over_grpc_a_backbone_under_local_normalisation_gives_the_bits_of_an_inline_run(
    make_federation: FederationMaker,
) -> None:
    settings = replace(RUN, task=task_name(LocalNorm), privacy=SETTINGS.privacy, seed=5)
    inline, grpc = (make_federation(settings, name=name) for name in ("inline", "grpc"))
    started(inline, settings)
    run_with(inline)
    started(grpc, settings)
    with ForkedAgents() as processes:
        start_agents(processes, grpc, start_server(processes, grpc), replace(TERMS, tasks=(settings.task,)))
        follow(processes, grpc, lambda _: None)
    for site in SITES:
        for part in ("models", "local"):
            one, other = (
                load_file(next((federation.paths[site] / part).glob("*.safetensors"))) for federation in (inline, grpc)
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in one.items())

"""What a model has beside what it trains stays at the site, is the same at all of them, and is in the model's file."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from typing_extensions import override

from client.flower import open_site
from client.state.checkpoint import Checkpoint, CheckpointStore
from client.state.initial_model import find_model
from client.state.model_parts import DTYPES, WIDTHS, check_constants, layout_of, set_tensors
from client.state.model_use import load_model, save_frozen
from privacy.codec.update import Layout, Model
from privacy.errors import RefusedError, TaskError
from privacy.run.tables import Start
from tests.federations import (
    SETTINGS,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)
from tests.studies import Tiny
from tests.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Context, Message

    from simulations.engine.federation import Federation

BACKBONE = "backbone.weight"


class Adapted(nn.Module):
    """A frozen layer, buffers, and a trained head: four parameters that travel."""

    mean: Tensor

    def __init__(self, mean: float = 0.0) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 3, bias=False).requires_grad_(requires_grad=False)
        self.head = nn.Linear(3, 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("places", torch.arange(3), persistent=False)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(inputs - self.mean.float())[:, self.places])
        return outputs


class Frozen(Tiny):
    """Trains the head alone."""

    mean: ClassVar[float] = 0.0

    @override
    def model(self) -> nn.Module:
        return Adapted(self.mean)


class Counting(Tiny):
    """Counts batches, but only large ones: that is not seen before it trains."""

    @override
    def model(self) -> nn.Module:
        return Counted()


class Counted(nn.Linear):
    """Its buffer changes in batches of a size that nobody tries."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        if len(inputs) == 20:  # all of north's and south's training records
            self.count.add_(1)
        return super().forward(inputs)


RUN = with_deadline(replace(SETTINGS, task=task_name(Frozen), rounds=2), 20.0)


def trained_model(federation: Federation) -> dict[str, Tensor]:
    """The one model that all sites have."""
    (file,) = set(models_of(federation).values())
    return load(file)


# --- In a run ---------------------------------------------------------------------------------------------------------


def test_only_what_is_trained_travels_and_is_in_the_models_file(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)
    assert all(event["released"] for event in run_with(federation))
    _, manifest, run = signed_run(federation)
    model = open_site(federation.paths["north"]).checkpoint(manifest, run).model
    assert model.layout.shapes == (("head.weight", (1, 3)), ("head.bias", (1,)))
    torch.manual_seed(manifest.settings.model_seed)
    module = Frozen().model()
    untrained = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert set(trained_model(federation)) == {"head.weight", "head.bias"}
    (path,) = (federation.paths["north"] / "models").glob("*.safetensors")
    state = load_model(Frozen(), path, model_seed=manifest.settings.model_seed).state_dict()
    assert torch.equal(state[BACKBONE], untrained[BACKBONE])
    assert not torch.equal(state["head.weight"], untrained["head.weight"])
    with pytest.raises(RefusedError, match="was trained over another frozen part than this task has"):
        load_model(Frozen(), path, model_seed=manifest.settings.model_seed + 1)


def test_a_site_with_another_constant_is_noticed_before_anything_is_charged(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)

    def answer(message: Message, context: Context) -> Message:
        from client.flower import app  # noqa: PLC0415

        Frozen.mean = 0.5 * str(context.node_config["site"]).endswith("west")
        return app(message, context)

    try:
        first, second = run_with(federation, answer)
    finally:
        Frozen.mean = 0.0
    assert "starts from a different model than" in first["problems"]["west"]
    assert first["sites"] == second["sites"] == ["east", "north", "south"]
    assert charges_of(federation, "west") == 0


def test_a_run_takes_constants_from_the_model_that_it_starts_from(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN)
    public = {name: tensor + 1 for name, tensor in Adapted().state_dict().items()}
    data = save(public)
    for path in federation.paths.values():
        (path / "models" / "public").mkdir(parents=True)
        (path / "models" / "public" / "base.safetensors").write_bytes(data)
    federation.sign(replace(RUN, start=Start(sha256(data).hexdigest())))
    assert all(event["released"] for event in run_with(federation))
    path = next(federation.folder.glob("north/models/study-*"))
    assert set(load(path.read_bytes())) == {"head.weight", "head.bias"}
    state = load_model(Frozen(), path).state_dict()
    assert torch.equal(state[BACKBONE], public[BACKBONE])
    assert float(state["mean"]) == 1.0
    assert not torch.equal(state["head.weight"], public["head.weight"])
    _, manifest, run = signed_run(federation)
    site = restart(federation, "north")
    again = site.checkpoint(manifest, run)
    assert again.round == 2
    module = site.study(RUN.task).load_into(Frozen().model(), again.model)
    assert torch.equal(module.state_dict()[BACKBONE], public[BACKBONE])


def test_a_buffer_that_only_training_changes_fails_the_round_before_anything_leaves(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(replace(SETTINGS, task=task_name(Counting)))
    site = open_site(federation.paths["north"])
    study = site.study(task_name(Counting))
    model = study.untrained(0)
    module = study.load_into(study.module(0), model)
    module(table(study.training)[0])
    with pytest.raises(TaskError, match="training changed `count` of the model, which is neither clipped nor shared"):
        study.difference(module, model)


# --- Names and files --------------------------------------------------------------------------------------------------


class AnyState(nn.Module):
    """A parameter, and constants of any type and shape."""

    def __init__(self, constants: dict[str, tuple[torch.dtype, tuple[int, ...], bool, int]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        for name, (dtype, shape, frozen, seed) in constants.items():
            values = (torch.from_numpy(np.random.default_rng(seed).normal(size=shape)) * 5).to(dtype)
            if frozen:
                setattr(self, name, nn.Parameter(values, requires_grad=False))
            else:
                self.register_buffer(name, values)


ANY_CONSTANTS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.tuples(
        st.sampled_from(list(DTYPES)),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.booleans(),
        st.integers(0, 9),
    ),
    max_size=5,
)


@pytest.mark.filterwarnings("ignore:Casting complex")
@given(constants=ANY_CONSTANTS)
def test_a_file_of_the_frozen_part_holds_constants_of_every_type_as_torch_reads_them(
    constants: dict[str, tuple[torch.dtype, tuple[int, ...], bool, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, module = tmp_path_factory.mktemp("state"), AnyState(constants)
    layout = layout_of(module)
    model = Model(module.weight.detach().numpy().copy(), layout)
    store = CheckpointStore(folder)
    digest, path = save_frozen(module, folder / "frozen.safetensors"), folder / "frozen.safetensors"
    tensors = load(path.read_bytes())
    assert tensors.keys() == module.state_dict().keys() - {"weight"}
    assert all(torch.equal(tensors[name], module.state_dict()[name]) for name in tensors)
    assert all(offset % width == 0 for offset, width in places(path.read_bytes()))
    again = AnyState(constants)
    like = Model(model.vector, layout_of(again))
    if layout.constants:
        like = find_model(folder, digest, like, "north")
        assert (like.digest, like.layout.source) == (model.digest, digest)
    saved = store.save("study", Checkpoint("0" * 64, 1, like, 0.5))
    read = store.load("study", "0" * 64, layout)
    assert read
    assert read[0].digest == model.digest
    set_tensors(again, find_model(folder, sha256(saved.read_bytes()).hexdigest(), like, "north"))
    check_constants(again, layout)


def places(data: bytes) -> list[tuple[int, int]]:
    """Where each tensor of a file begins, and how many bytes a number of it takes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return [(8 + length + entry["data_offsets"][0], WIDTHS[entry["dtype"]]) for entry in header.values()]


def test_a_file_without_a_constant_or_with_another_type_of_it_is_refused_by_its_name(tmp_path: Path) -> None:
    layout, state = layout_of(Adapted()), Adapted().state_dict()
    untrained = Model(np.zeros(layout.size, np.float32), layout)
    for wrong in (
        {name: tensor for name, tensor in state.items() if name != BACKBONE},
        state | {BACKBONE: state[BACKBONE].half()},
    ):
        data = save(wrong)
        (tmp_path / "base.safetensors").write_bytes(data)
        with pytest.raises(RefusedError, match=f"does not have the tensors of this run's task: {BACKBONE}"):
            find_model(tmp_path, sha256(data).hexdigest(), untrained, "north")


def test_a_layout_without_constants_has_the_digest_of_names_and_shapes_alone() -> None:
    layout = layout_of(nn.Linear(2, 1))
    assert layout == Layout((("weight", (1, 2)), ("bias", (1,))))
    assert layout.digest == sha256(b'cloister layout[["weight", [1, 2]], ["bias", [1]]]').hexdigest()


def test_names_are_those_of_the_state_dict_and_tied_weights_are_there_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    assert [name for name, _ in layout_of(module).shapes] == ["0.weight", "0.bias", "1.bias"]
    recurrent = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert {name for name, _ in layout_of(recurrent).shapes} == set(recurrent.state_dict())

"""A language model's adapters and head are trained; the model under them is in nothing that is written or sent."""

from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from client.dpsgd.training_steps import train, way_to_train
from client.settings import Computing
from client.task.probe import make_model
from cloister import load_model, save_frozen
from privacy.codec.ciphertext import CIPHERTEXT_BYTES
from privacy.codec.packing import Packing
from privacy.noise.randomness import Randomness
from privacy.run.settings import Encryption
from privacy.run.tables import Start
from tests.federations import NOISY, FederationMaker, run_with, task_name
from tests.trainings import signed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # of transformers
    pytest.mark.skipif(not (find_spec("peft") and find_spec("transformers")), reason="needs the extra `text`"),
]
MASKED = Encryption(update_bound=1.0, collusion_resistant=True)


def trained_names() -> set[str]:
    from tests.language import Intents  # noqa: PLC0415 - loads transformers

    return {name for name, parameter in Intents().model().named_parameters() if parameter.requires_grad}


def test_adapters_and_head_alone_are_trained_under_noise_masks_and_encryption(
    make_federation: FederationMaker,
) -> None:
    from tests.language import Intents  # noqa: PLC0415 - loads transformers

    federation = make_federation(replace(NOISY, task=task_name(Intents), encryption=MASKED))
    torch.manual_seed(7)
    public = Intents().model()
    (digest,) = {save_frozen(public, path / "models" / "language.safetensors") for path in federation.paths.values()}
    federation.sign(replace(NOISY, task=task_name(Intents), encryption=MASKED, start=Start(digest)))
    (event,) = run_with(federation)
    assert event["released"]
    (path,) = (federation.paths["north"] / "models").glob("study-*")
    assert set(load_file(path)) == trained_names()
    assert (
        len(
            {
                sha256(next((folder / "models").glob("study-*")).read_bytes()).digest()
                for folder in federation.paths.values()
            }
        )
        == 1
    )
    model, untrained = load_model(Intents(), path).state_dict(), make_model(Intents(), 0).state_dict()
    for name, value in public.state_dict().items():
        same_as = untrained if name in trained_names() else public.state_dict()
        assert torch.equal(model[name], same_as[name]) == (name not in trained_names()), name
        assert value.shape == model[name].shape


def test_book_keeping_computes_their_gradients() -> None:
    from tests.language import Intents  # noqa: PLC0415 - loads transformers

    task = Intents()
    choice = way_to_train(task, make_model(task, 0), Computing())
    assert choice.gradients == "bookkeeping"


@pytest.mark.soak
@pytest.mark.timeout(1800)  # 20 seconds of one core, on a machine that does nothing else
def test_a_hundred_million_frozen_parameters_cost_their_own_memory_and_an_update_of_a_megabyte_and_a_half() -> None:
    from tests.language import Base  # noqa: PLC0415 - loads transformers

    task = Base()
    module = make_model(task, 0)
    sizes = [
        sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad is on)
        for on in (True, False)
    ]
    assert sizes[1] > 1e8
    assert 0.002 < sizes[0] / sizes[1] < 0.006
    frozen = sum(
        parameter.numel() * parameter.element_size() for parameter in module.parameters() if not parameter.requires_grad
    )
    inputs, targets = task.example()
    computing = Computing(gradients="bookkeeping", physical_batch=4)
    run = signed(steps=1, noise=1.0)
    train(task, module, (inputs[:4], targets[:4]), 4, run, Randomness.fresh(), computing=computing)
    assert peak() < frozen + 2 * 10**9
    packing = Packing.of("compact", cohort=8, update_bound=1.0, max_weight=1.0)
    assert packing.ciphertexts(sizes[0]) * CIPHERTEXT_BYTES < 1_500_000


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

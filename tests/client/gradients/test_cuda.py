"""On a CUDA device: the same sums and steps as on the processor, and nothing goes back and forth within a step.

`make test-gpu` runs these, and every other test that tries all devices.
"""

from collections import Counter

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from client.data.site_records import InMemory
from client.dpsgd.training_steps import train
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from client.settings import Gradients
from privacy.noise.randomness import Randomness
from tests.client.specimens import MODES, RECORDS, SPECIMENS, Scores, clipped_sum, computing, make_specimen, manifest

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

CASES = [(name, mode) for name, specimen in SPECIMENS.items() for mode in MODES if mode in specimen.modes]


@pytest.mark.parametrize("physical_batch", [RECORDS, 4])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_mode_gives_the_clipped_sum_that_the_processor_gives(name: str, mode: Gradients, physical_batch: int) -> None:
    sums = []
    for device in ("cpu", "cuda"):
        model, records = make_specimen(name, device)
        sums.append(clipped_sum(mode, Scores(), model, records, 0.3, physical_batch).cpu())
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_round_draws_the_same_noise_from_the_cipher_on_every_device(mode: Gradients) -> None:
    models = []
    for device in ("cpu", "cuda"):
        model, records = make_specimen("mlp", device)
        run = manifest(4, 0.6, 1.0)
        train(Scores(), model, records, RECORDS, run, Randomness.seeded(5), computing=computing(mode))
        models.append(torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()]))
    torch.testing.assert_close(models[1], models[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "two dimensions", "norms"])
@pytest.mark.parametrize("physical_batch", [RECORDS, 2])
def test_in_a_step_noise_goes_to_the_device_once_and_one_answer_per_part_comes_back(
    name: str, physical_batch: int
) -> None:
    """The answer is whether all norms are finite: only then do all records count."""
    model, records = make_specimen(name, "cuda")
    mode = make_mode("bookkeeping", model, RecordLoss(Scores(name)), 0.3, torch.float32)
    optimizer = CipherOptimizer(
        torch.optim.SGD(trainable(model), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=0.3,
        expected_batch_size=RECORDS,
        loss_reduction="mean",
        randomness=Randomness.fresh(),
    )
    chosen = torch.arange(RECORDS, device="cuda")
    with quiet():
        optimizer.take(mode, InMemory(*records), chosen, physical_batch)  # fills caches
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            optimizer.take(mode, InMemory(*records), chosen, physical_batch)
            torch.cuda.synchronize()
    optimizer.close()
    mode.to_standard_module()
    copies = Counter(event.name[:11] for event in watched.events() or () if event.name.startswith("Memcpy"))
    assert copies["Memcpy HtoD"] <= 1
    assert copies["Memcpy DtoH"] <= RECORDS // physical_batch

"""Play the rounds of a run over many sites whose models train together, on a CPU or a GPU.

Every step is that of a site: Poisson batches, records' gradients clipped, noise, the run's optimizer and schedule, the
algorithm's own correction, residuals, levels, their sum, the mean, the next range. What is left out are keys, ledgers
and messages. Products of many matrices at once are rounded otherwise than one by one, so that a model differs from the
one that `inline` gives in the last bits; from the same updates, levels, sum and model are the same, bit for bit.

A run with a seed draws as its sites would. Otherwise all sites draw from one stream of the same cipher, which is
faster, and has the same distribution.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.dpsgd.optimizers import make_optimizer
from client.dpsgd.torch_draws import forked, seed_all
from client.state.model_parts import trained
from privacy.codec.update import Update
from privacy.noise.randomness import Randomness
from privacy.run.optimizer import Sgd
from simulations.vectorised.batches import draw_as_sites, draw_together
from simulations.vectorised.clipped_sum import ClippedSum
from simulations.vectorised.descent import Descent
from simulations.vectorised.gradients import LinearGradients, site_gradients
from simulations.vectorised.kept_vectors import KeptVectors
from simulations.vectorised.levels import LevelSum
from simulations.vectorised.solvers import LocalHalves
from simulations.vectorised.workspace import Workspace
from strategies.advance import State, advance
from strategies.algorithm import Run
from strategies.averaging import next_bound
from strategies.registry import algorithm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from client.task.task import Task
    from privacy.codec.update import Model
    from privacy.run.manifest import Manifest
    from privacy.run.settings import Training
    from simulations.vectorised.batches import Draw, SiteRecords
    from simulations.vectorised.clipped_sum import SumNoise

_AT_ONCE = 1 << 19  # numbers of all models that train together: as many as a processor's cache holds
_MOST_SITES = 1024


def unsuitable(task: Task, manifest: Manifest) -> str | None:
    """Return why a run's sites cannot be trained together; None if they can."""
    settings = manifest.settings
    training, why = settings.training, None
    if training is None or not settings.takes_steps:
        why = "it trains nothing"
    elif task.local:
        why = "some parameters stay at the sites"
    elif settings.shares_noise:
        why = 'its noise is shared (noise = "shared")'
    elif settings.privacy.clipping != "flat":
        why = "it clips layer by layer"
    elif training.augmentation_multiplicity:
        why = "it augments records"
    elif settings.encryption.update_norm is not None:
        why = "its sites prove the norm of their updates"
    elif settings.vote is not None:
        why = "its sites vote"
    return why


@contextmanager
def single_threads(several: int) -> Iterator[None]:
    """Let torch compute each product in one thread while several threads compute, each on its own sites."""
    before = torch.get_num_threads()
    if several > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Streams:
    """From what some sites draw in a round."""

    sampling: Draw | None
    noise: Randomness
    rounding: list[Randomness]  # of each site, or one for all

    def uniform(self, drawn: Tensor) -> Tensor:
        """Overwrite `(S, parameters)` numbers, float32, by draws from [0, 1), and return them."""
        rows = drawn.numpy()
        for row, stream in zip([rows.reshape(-1)] if len(self.rounding) == 1 else rows, self.rounding, strict=True):
            stream.fill_uniform32(row)
        return drawn


class VectorisedSites:
    """The sites of a run, trained together; what each keeps from round to round."""

    def __init__(
        self, task: Task, module: nn.Module, records: SiteRecords, manifest: Manifest, noise: SumNoise | None = None
    ) -> None:
        """Begin before the first round.

        Args:
            task: of the run.
            module: its model, on the device that trains.
            records: of the sites in `[cohort.sizes]`, in this order, on the same device.
            manifest: of the run, which `unsuitable` accepts.
            noise: of a trusted party, added to the sum of clipped updates. Then nothing is rounded to levels, no site
                keeps a residual, and weights are equal.
        """
        settings = manifest.settings
        self._manifest, self._records, self._task, self._module = manifest, records, task, module
        self._names = list(settings.cohort.sizes)
        self._run = Run.of(settings)
        self._weights = np.array(list(self._run.weights.values()))
        self._declared = np.array(list(settings.cohort.sizes.values()))
        self._shapes = {name: parameter.shape for name, parameter in trained(module).items()}
        size = sum(shape.numel() for shape in self._shapes.values())
        self._gradients = site_gradients(task, module)
        self._algorithm = algorithm_of(manifest, "this simulation")
        self._packing = settings.packing(manifest.update_noise)
        self._ceiling = self._packing.update_bound
        self._residuals = KeptVectors(len(self._names), size, np.float32)
        self._own = {name: KeptVectors(len(self._names), size, np.float64) for name in self._algorithm.own}
        self._state = State.start(self._algorithm, size)
        self._size, self._noise_of_sum = size, noise
        # `functional_call` puts parameters into the one module: other models than chains of layers share no time.
        together = isinstance(self._gradients, LinearGradients) and next(module.parameters()).device.type == "cpu"
        threads = torch.get_num_threads() if together else 1
        self._streams_of_threads = [Randomness.fresh() for _ in range(threads)]
        self._workspaces = [Workspace(size, next(module.parameters()).device) for _ in range(threads)]
        if settings.training and settings.training.optimizer != Sgd():
            make_optimizer(Sgd(), [torch.zeros(1)], 1.0)  # the first one loads much of torch: not in the first round
        # Sites of about the same size train together, so that little is padding.
        self._place_by_size = np.argsort(np.argsort(records.sizes, kind="stable"), kind="stable")

    def close(self) -> None:
        """Remove what sites kept."""
        self._residuals.close()
        for kept in self._own.values():
            kept.close()

    def round(self, number: int, model: Model, contributors: NDArray[np.intp] | None = None) -> Model:
        """Play a round, and return the next round's model.

        Args:
            number: from 1.
            model: the model that the round starts from.
            contributors: the numbers of the sites that take part; None: all.
        """
        sites = np.arange(len(self._names)) if contributors is None else np.asarray(contributors, np.intp)
        groups = list(self._together(sites))
        threads = max(1, min(len(groups), len(self._streams_of_threads)))

        @torch.no_grad()  # each thread has a mode of its own
        def summed(thread: int) -> LevelSum | ClippedSum:
            total: LevelSum | ClippedSum = LevelSum(self._size, self._packing)
            if self._noise_of_sum is not None:
                total = ClippedSum(self._size, self._noise_of_sum.max_update_norm)
            for some in groups[thread::threads]:
                self._add(total, some, number, model, self._streams_of_threads[thread], self._workspaces[thread])
            return total

        with self._draws(number), single_threads(threads), ThreadPoolExecutor(threads) as pool:
            total, *others = pool.map(summed, range(threads)) if threads > 1 else [summed(0)]
        for other in others:
            total.include(other)  # type: ignore[arg-type]  # all are of one kind
        return self._after(model, total, sites)

    @contextmanager
    def _draws(self, number: int) -> Iterator[None]:
        """Have the model draw from a secret seed, or the run's, and leave torch's generators as they were."""
        if isinstance(self._gradients, LinearGradients):  # it draws nothing
            yield
            return
        seed = self._manifest.settings.seed
        with forked():
            seed_all(Randomness.fresh() if seed is None else Randomness.seeded(seed, "torch", number))
            yield

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What all sites share beside the model, by name, to go on after this round."""
        shared: dict[str, NDArray[Any]] = {f"state.{name}": values for name, values in self._state.vectors.items()}
        earlier = self._noise_of_sum.earlier if self._noise_of_sum is not None else []
        noise = {f"noise.{place}": values for place, values in enumerate(earlier)}
        return shared | noise | {"update_bound": np.array([self._packing.update_bound])}

    @property
    def parts(self) -> dict[str, Iterator[NDArray[Any]]]:
        """What each site keeps, by name, part by part."""
        return {name: kept.parts() for name, kept in self._kept.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], parts: Callable[[str], Iterator[NDArray[Any]]]) -> None:
        """Go on after a round, given its `arrays` and `parts`."""
        self._state = State({name: arrays[f"state.{name}"] for name in self._state.vectors})
        self._packing = replace(self._packing, update_bound=float(arrays["update_bound"][0]))
        if self._noise_of_sum is not None:
            count = sum(name.startswith("noise.") for name in arrays)
            self._noise_of_sum.earlier = [arrays[f"noise.{place}"] for place in range(count)]
        for name, kept in self._kept.items():
            kept.restore(parts(name))

    @property
    def _kept(self) -> dict[str, KeptVectors[Any]]:
        if self._noise_of_sum is not None:
            return {}
        return {"residual": self._residuals} | {f"own.{name}": kept for name, kept in self._own.items()}

    def _after(self, model: Model, total: LevelSum | ClippedSum, sites: NDArray[np.intp]) -> Model:
        """Return the next round's model."""
        weights = self._run.weights
        if isinstance(total, ClippedSum):
            assert self._noise_of_sum is not None  # noqa: S101 - otherwise levels are added
            mean = Update(self._noise_of_sum.mean(total.total))  # whoever took part: weights do not tell, either
        else:
            mean = total.mean(self._weights[sites].tolist())
            self._packing = replace(self._packing, update_bound=next_bound(mean, len(sites), self._ceiling))
            weights = {self._names[site]: float(self._weights[site]) for site in sites}
        after, self._state = advance(self._algorithm, self._run, model, self._state, mean, weights)
        return after

    def _together(self, sites: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
        """Yield the sites that train together, so many that what is computed stays in the processor's cache."""
        sites = sites[np.argsort(self._place_by_size[sites])]
        sizes, start = self._records.sizes[sites], 0
        of_sites = self._size + sizes * self._gradients.values_per_record
        at_once = min(_AT_ONCE, -(-int(of_sites.sum()) // len(self._streams_of_threads)))
        while start < len(sites):
            most = min(len(sites), start + _MOST_SITES)
            numbers = np.arange(1, most - start + 1) * of_sites[start:most]
            end = start + max(1, int(np.searchsorted(numbers, at_once, "right")))
            yield np.sort(sites[start:end])
            start = end

    def _add(
        self, total: LevelSum | ClippedSum, sites: NDArray[np.intp], number: int, model: Model, stream: Randomness,
        workspace: Workspace,
    ) -> None:  # fmt: skip
        """Train some sites, and add their updates to a sum."""
        streams = self._streams(sites, number, stream)
        own = {name: kept.read(sites) for name, kept in self._own.items()}
        names = [self._names[site] for site in sites]
        half = LocalHalves.at(self._algorithm, self._run, names, model, self._state, own)
        updates = self._trained(sites, number, model, streams, half, workspace)
        half.sent(updates)
        if isinstance(total, ClippedSum):
            total.add(updates)
            return
        rest = workspace.rows_here("rest", len(sites))
        self._residuals.read(sites, rest.numpy())
        updates += rest
        whole = updates.double().numpy() if own else None
        unit = self._packing.unit(1.0) / self._weights[sites]
        total.add(updates, torch.from_numpy(unit).unsqueeze(1), streams.uniform(rest))
        self._residuals.write(sites, updates.numpy())
        if whole is not None:
            for name, rows in half.kept(whole - updates.double().numpy()).items():
                self._own[name].write(sites, rows)

    def _streams(self, sites: NDArray[np.intp], number: int, stream: Randomness) -> _Streams:
        settings = self._manifest.settings
        rate, seed = settings.kind.sampling[0], settings.seed
        if seed is None:
            sampling = draw_together(stream, rate) if rate < 1 else None
            return _Streams(sampling, stream, [stream])
        training, rounding = (
            [Randomness.seeded(seed, self._names[site], number, 1, use) for site in sites]
            for use in ("training", "rounding")
        )
        return _Streams(draw_as_sites(training, rate) if rate < 1 else None, stream, rounding)

    def _trained(
        self, sites: NDArray[np.intp], number: int, model: Model, streams: _Streams, half: LocalHalves,
        workspace: Workspace,
    ) -> Tensor:  # fmt: skip
        """Train some sites for one round; return their updates `(S, parameters)`, float32, on the CPU."""
        training, privacy = self._manifest.settings.training, self._manifest.settings.privacy
        assert training is not None and privacy.max_grad_norm is not None  # noqa: S101, PT018 - `unsuitable` looked
        device = next(self._module.parameters()).device
        start = torch.from_numpy(model.vector).to(device)
        share = torch.from_numpy(1.0 / np.maximum(1.0, training.sample_rate * self._declared[sites]))
        descent = Descent(training, self._shapes, start, len(sites), workspace)
        correction = _Correction(half, descent, device)
        counts, noise = half.steps(training.steps), self._manifest.update_noise * privacy.max_grad_norm
        everything = self._records.batches(sites, None) if streams.sampling is None else None
        for step in range(1, training.steps + 1):
            batches = everything or self._records.batches(sites, streams.sampling)
            scale = (share if counts is None else share * torch.from_numpy(step <= counts)).to(device, torch.float32)
            gradients = descent.gradients
            sums = descent.by_name(gradients)
            self._gradients.clipped_sums(descent.models, batches, privacy.max_grad_norm, scale, sums)
            if noise:
                drawn = workspace.rows_here("noise", len(sites))
                streams.noise.fill_gaussian(drawn.view(-1).numpy(), noise)
                gradients.addcmul_(drawn.to(device), scale.unsqueeze(1))
            correction.add(gradients)
            descent.step(gradients, self._rate(training, number, step))
        return descent.updates.cpu()

    def _rate(self, training: Training, number: int, step: int) -> float:
        done, rounds = (number - 1) * training.steps, self._manifest.settings.rounds
        return training.learning_rate * training.schedule.fraction(done + step, training.steps, rounds)


class _Correction:
    """What the algorithm adds to the noisy gradients: `proximal · (w − w₀) + offset`."""

    def __init__(self, half: LocalHalves, descent: Descent, device: torch.device) -> None:
        proximal, offset = half.proximal, half.offset
        self._proximal = None if proximal is None else proximal.to(device)
        self._offset = None if offset is None else offset.to(device)
        self._descent = descent

    def add(self, gradients: Tensor) -> None:
        """Add it to the gradients of a step, `(S, parameters)`."""
        if self._proximal is not None:
            gradients.addcmul_(self._descent.updates, self._proximal)
        if self._offset is not None:
            gradients.add_(self._offset)

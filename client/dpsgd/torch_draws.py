"""Fork, seed, watch and hold fixed the draws from torch's generators.

A record's place in a batch depends on the other records. So a dropout mask that is known, or the same in every step,
links records: without one record, the next one gets its mask. Masks must be drawn afresh from torch's own generator,
from a secret seed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privacy.noise.randomness import Randomness

_SAMPLE = 32  # draws; the largest replaces all values
_BY_REJECTION = ("gamma", "dirichlet", "poisson", "binomial")  # each takes a varying number of draws


@contextmanager
def forked(*, devices: bool = True) -> Iterator[None]:
    """Restore torch's generators on exit: the CPU's and, unless `devices` is False, those of all devices in use."""
    used = range(torch.cuda.device_count()) if devices and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=used):
        yield


def seed_cpu(seed: int) -> None:
    """Seed the CPU's generator alone. `torch.manual_seed` would seed all devices, even ones that start later."""
    torch.default_generator.manual_seed(seed)


def seed_used(seed: int) -> None:
    """Seed the generators of the CPU and of devices in use.

    `torch.manual_seed` would also seed other devices when they start, and records a stack trace for each of them.
    """
    seed_cpu(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def drawn_since(seed: int) -> bool:
    """Return whether anything was drawn after `seed_used(seed)`, and seed the generators again."""
    after = _states()
    seed_used(seed)
    return any(not torch.equal(state, fresh) for state, fresh in zip(after, _states(), strict=True))


def _states() -> list[Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.default_generator.get_state(), *devices]


def seed_all(randomness: Randomness) -> None:
    """Seed the generators of the CPU and of all CUDA devices, even ones that start later."""
    seed = int.from_bytes(randomness.bytes(8), "big") >> 1
    seed_cpu(seed)
    if torch.cuda.is_initialized() or torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


class LightMode(TorchDispatchMode):
    """A mode with which torch's compiler is not loaded for its first operation, which takes two seconds.

    torch loads it to keep it from compiling what a mode does. Here it is loaded only if a task compiles something.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        return False


class Draws(LightMode):
    """A context that watches all random draws; with `still`, every draw gives a constant."""

    def __init__(self, *, still: bool = False) -> None:
        super().__init__()
        self._still = still
        self.states: list[int] = []
        """Hashes of the generator's state before each draw."""
        self.foreign = False
        """Whether something was drawn from a generator other than torch's own."""
        self.by_rejection = False
        """Whether one record's draws can shift those of the next."""
        self.rounding = torch.finfo(torch.float32).eps
        """The relative rounding error of the coarsest type in any computation."""

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            outputs = func(*args, **options)
            if isinstance(outputs, Tensor) and outputs.dtype in {torch.bfloat16, torch.float16}:
                self.rounding = max(self.rounding, torch.finfo(outputs.dtype).eps)
            return outputs
        self.by_rejection |= func.overloadpacket.__name__.endswith(_BY_REJECTION)
        own, named = torch.default_generator, options.get("generator")  # torch may wrap the same generator anew
        before, theirs = own.get_state(), (named or own).get_state()
        outputs = func(*args, **options)
        if torch.equal(before, own.get_state()):  # nothing was drawn, or not from torch's own
            self.foreign |= not torch.equal(theirs, (named or own).get_state())
            return outputs
        self.states.append(hash(before.numpy().tobytes()))
        if not self._still:
            return outputs
        own.set_state(before)
        return _constant(func, args, options, outputs)


def _constant(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:  # noqa: ANN401 - torch's
    """Replace drawn values by constants that depend on the distribution's parameters, not on the shape or the time."""
    match func.overloadpacket.__name__:
        case "bernoulli" | "bernoulli_":  # its arguments may be probabilities; nothing is dropped
            return result.fill_(1)
        case "multinomial":
            return args[0].topk(args[1], -1).indices
        case "normal" if any(isinstance(argument, Tensor) for argument in args):
            return result.copy_(sum(args[1:], args[0]))  # mean plus standard deviation
    tensors = sum(isinstance(argument, Tensor) for argument in args)
    if not isinstance(result, Tensor) or tensors > 1 or func.overloadpacket.__name__ == "randperm":
        return result
    one_of = [
        argument.new_empty(_SAMPLE)
        if isinstance(argument, Tensor)
        else [_SAMPLE]
        if isinstance(argument, list)
        else argument
        for argument in args
    ]
    before = torch.default_generator.get_state()
    seed_cpu(0)
    value = func(*one_of, **kwargs).max()
    torch.default_generator.set_state(before)
    with torch.no_grad():
        return result.fill_(value)


def check_draws(watched: list[Draws]) -> None:
    """Refuse a task that draws from its own generator, or from a seed that it sets itself.

    Args:
        watched: two runs with different seeds.

    Raises:
        TaskError: if a draw was the same in both.
    """
    one, other = watched
    if one.foreign or other.foreign:
        msg = "its model or loss draws from its own generator; use torch's default generator, which can be checked"
        raise TaskError(msg)
    if set(one.states) & set(other.states):
        msg = (
            "its model or loss sets the seed of its draws, so a dropout mask depends on a record's place in the "
            "batch; leave seeds to Cloister"
        )
        raise TaskError(msg)

"""What is drawn from torch's generators: forked, seeded, watched, and held still.

Where a record stands in a batch depends on the other records of the batch. So a dropout mask that is known, or that is
the same in every step, ties records together: the mask that one record loses, the next one gets. Masks must be drawn
afresh from torch's own generator, under a seed that nobody knows.
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

_SAMPLE = 32  # draws of which the largest stands for all
_BY_REJECTION = ("gamma", "dirichlet", "poisson", "binomial")  # each takes as many as it needs


@contextmanager
def forked(*, devices: bool = True) -> Iterator[None]:
    """Leave torch's generators as they were: the CPU's and, unless told otherwise, those of all devices in use."""
    used = range(torch.cuda.device_count()) if devices and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=used):
        yield


def seed_cpu(seed: int) -> None:
    """Seed the CPU's generator alone. `torch.manual_seed` would seed all devices, even ones that start later."""
    torch.default_generator.manual_seed(seed)


def seed_used(seed: int) -> None:
    """Seed the generators of the CPU and of devices that are in use.

    `torch.manual_seed` would do it for all others when they start, and takes down the whole stack for each of them.
    """
    seed_cpu(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def drawn_since(seed: int) -> bool:
    """Return whether anything was drawn after `seed_used(seed)`. The generators are left as if nothing had been."""
    after = _states()
    seed_used(seed)
    return any(not torch.equal(state, fresh) for state, fresh in zip(after, _states(), strict=True))


def _states() -> list[Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.default_generator.get_state(), *devices]


def seed_all(randomness: Randomness) -> None:
    """Seed the generators of the CPU and of all devices, also of those that start later."""
    torch.manual_seed(int.from_bytes(randomness.bytes(8), "big") >> 1)


class Draws(TorchDispatchMode):
    """Watches all that is drawn as long as it lasts; with `still`, nothing is random: every draw gives one constant."""

    def __init__(self, *, still: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._still = still
        self.states: list[int] = []
        """Of the generator at each draw."""
        self.foreign = False
        """Whether something was drawn from a generator that is not torch's own."""
        self.by_rejection = False
        """Whether what one record takes from the generator decides what is left for the next."""
        self.rounding = torch.finfo(torch.float32).eps
        """Of the coarsest numbers that anything was computed in."""

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            found = func(*args, **given)
            if isinstance(found, Tensor) and found.dtype in {torch.bfloat16, torch.float16}:
                self.rounding = max(self.rounding, torch.finfo(found.dtype).eps)
            return found
        self.by_rejection |= func.overloadpacket.__name__.endswith(_BY_REJECTION)
        own = torch.default_generator
        if (generator := given.get("generator")) is not None and generator is not own:
            self.foreign = True
        before = own.get_state()
        found = func(*args, **given)
        if torch.equal(before, own.get_state()):
            return found  # it might have drawn, and did not
        self.states.append(hash(before.numpy().tobytes()))
        if not self._still:
            return found
        own.set_state(before)
        return _constant(func, args, given, found)


def _constant(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> Any:  # noqa: ANN401 - torch's
    """Replace what was drawn by what depends neither on its shape nor on when it was drawn, but on parameters given."""
    match func.overloadpacket.__name__:
        case "bernoulli" | "bernoulli_":  # whose arguments may be chances: what is dropped is another matter
            return found.fill_(1)
        case "multinomial":
            return args[0].topk(args[1], -1).indices
        case "normal" if any(isinstance(each, Tensor) for each in args):
            return found.copy_(sum(args[1:], args[0]))  # mean and deviation
    tensors = sum(isinstance(each, Tensor) for each in args)
    if not isinstance(found, Tensor) or tensors > 1 or func.overloadpacket.__name__ == "randperm":
        return found
    one_of = [
        each.new_empty(_SAMPLE) if isinstance(each, Tensor) else [_SAMPLE] if isinstance(each, list) else each
        for each in args
    ]
    before = torch.default_generator.get_state()
    seed_cpu(0)
    value = func(*one_of, **kwargs).max()
    torch.default_generator.set_state(before)
    with torch.no_grad():
        return found.fill_(value)


def check_draws(watched: list[Draws]) -> None:
    """Refuse what draws from a generator of its own, or under a seed of its own.

    Args:
        watched: two runs under different seeds.

    Raises:
        TaskError: if a draw was the same in both.
    """
    one, other = watched
    if one.foreign or other.foreign:
        msg = "its model or loss draws from a generator of its own; use torch's default one, which can be tried"
        raise TaskError(msg)
    if set(one.states) & set(other.states):
        msg = (
            "its model or loss draws under a seed that it sets itself, so that a dropout mask goes by a record's place "
            "in the batch; leave seeds to Cloister"
        )
        raise TaskError(msg)

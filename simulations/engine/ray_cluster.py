"""Ray for Flower's own engine: started here, or a cluster that runs already; and whether it can play a simulation."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from socket import create_connection
from typing import TYPE_CHECKING, Any

from client.task.task import import_task
from privacy.errors import CloisterError, ConfigError, MalformedError
from transport.address import read_address

if TYPE_CHECKING:
    from collections.abc import Iterator

_OFF = (
    "RAY_USAGE_STATS_ENABLED",  # a simulation must not call home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV",  # under `uv run`, Ray would copy the working folder
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",  # what Ray will do by default, and warns of until then
)
_ANSWER = 5.0  # seconds for Ray's port to open
_LOOK = 180.0  # seconds for a machine to start a process that loads torch
_INSTALL = "pip install 'cloister[flower]' or 'flwr[simulation]' brings it"


@dataclass(frozen=True)
class Cluster:
    """What Flower's engine asks of Ray."""

    address: str | None = None  # `host:port` of a cluster that runs, or `auto` to look for one; None: Ray starts here
    cpus: float = 1.0  # for a site, while it works
    gpus: float = 0.0  # as `cpus`; a half lets two sites share one

    def __str__(self) -> str:
        """Where sites are played, and how many CPUs and GPUs each has."""
        where = f"on the Ray cluster {self.address}" if self.address else "on Ray, which starts here"
        return f"{where}, {_amount(self.cpus, self.gpus)} for a site at work"

    def check(self, processes: int) -> None:
        """Check before a simulation that Ray is installed and answers, and could give a site what it asks for.

        Args:
            processes: how many CPUs Ray has if it starts here.

        Raises:
            ConfigError: if not.
        """
        if find_spec("ray") is None:
            msg = f"the engine flower needs Ray, which is not installed here; {_INSTALL}"
            raise ConfigError(msg)
        for what, number, least in (("cpus", self.cpus, 1e-4), ("gpus", self.gpus, 0.0)):
            if not least <= number < float("inf") or (number > 1 and number % 1):
                msg = (
                    f"{what}_per_site = {number:g}: Ray gives a site a whole number, or a fraction of one; "
                    f"write for example {what}_per_site={1 if what == 'cpus' else 0.5}"
                )
                raise ConfigError(msg)
        if self.address not in {None, "auto"}:
            _check_answers(str(self.address))
        elif self.address is None and self.cpus > processes:
            msg = (
                f"cpus_per_site = {self.cpus:g}, but Ray would have {processes} CPUs here; ask for fewer, "
                "or name a cluster by ray_address"
            )
            raise ConfigError(msg)

    @contextmanager
    def connected(self, processes: int, folder: Path, task: str) -> Iterator[None]:
        """Connect this process to Ray, and check that the cluster's machines can play.

        Args:
            processes: how many CPUs Ray has if it starts here.
            folder: what every machine must see.
            task: what every machine must import, as `module:Class`; or nothing.

        Raises:
            ConfigError: if no Ray answers, or none of its machines can play.
        """
        for name in _OFF:
            os.environ.setdefault(name, "0")
        import ray  # noqa: PLC0415 - an extra, which takes a second

        if ray.is_initialized():
            msg = "this process is connected to Ray, from which Flower would disconnect it; call ray.shutdown() before"
            raise ConfigError(msg)
        with _same_signals():
            try:
                ray.init(
                    self.address or "local", include_dashboard=None if self.address else False,
                    num_cpus=None if self.address else processes, log_to_driver=False, logging_level=logging.ERROR,
                    runtime_env={"env_vars": _environment()},
                )  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                msg = (
                    f"Ray does not start here: {error}"
                    if self.address is None
                    else f"the Ray cluster {self.address} cannot be used from here: {error}; "
                    "run this on one of its machines: ray start --address HOST:PORT makes this machine one"
                )
                raise ConfigError(msg) from error
            try:
                self._check_machines(folder, task)
                yield
            finally:
                ray.shutdown()

    def _check_machines(self, folder: Path, task: str) -> None:
        import ray  # noqa: PLC0415 - see above
        from ray.exceptions import GetTimeoutError, RayError  # noqa: PLC0415
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        machines: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        fitting = [node for node in machines if self._fits(node["Resources"])]
        if not fitting:
            have = "; ".join(
                f"{node['NodeManagerAddress']} has "
                f"{_amount(node['Resources'].get('CPU', 0), node['Resources'].get('GPU', 0))}"
                for node in machines
            )
            msg = f"none of Ray's machines has {_amount(self.cpus, self.gpus)} for a site: {have}; ask for less"
            raise ConfigError(msg)
        if self.address is None:
            return  # this machine has what this process has
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(_look)
        looks = {
            remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(folder), task, self.gpus > 0): node["NodeManagerAddress"]
            for node in fitting
        }  # fmt: skip
        for look, machine in looks.items():
            try:
                problem = ray.get(look, timeout=_LOOK)
            except GetTimeoutError:
                problem = f"it has not answered for {_LOOK:g} s; is it busy, or lost?"
            except (RayError, ImportError) as error:
                problem = f"{str(error).strip().splitlines()[-1]}; install there what is installed here"
            if problem:
                msg = f"Ray's machine {machine} cannot play: {problem}"
                raise ConfigError(msg)

    def _fits(self, resources: dict[str, float]) -> bool:
        return resources.get("CPU", 0) >= self.cpus and resources.get("GPU", 0) >= self.gpus


def cluster_of(address: str | None, cpus: float | None, gpus: float | None) -> Cluster | None:
    """Return what these options say, or None if they say nothing."""
    if address is None and cpus is None and gpus is None:
        return None
    return Cluster(address, 1.0 if cpus is None else cpus, 0.0 if gpus is None else gpus)


def _look(folder: str, task: str, cuda: bool) -> str:  # noqa: FBT001 - Ray passes it by its place
    """Return what prevents the machine on which this is called from playing, or nothing."""
    if not Path(folder).is_dir():
        return f"it does not see {folder}; name a folder on storage that all machines share: --folder, or folder="
    if cuda:
        import torch  # noqa: PLC0415 - only then

        if not torch.cuda.is_available():
            return "PyTorch finds no GPU there; install PyTorch for CUDA, or leave gpus_per_site out"
    try:
        if task:
            import_task(task)
    except CloisterError as error:
        return str(error)
    return ""


def _amount(cpus: float, gpus: float) -> str:
    parts = [f"{number:g} {what}{'s' * (number > 1)}" for number, what in ((cpus, "CPU"), (gpus, "GPU")) if number]
    return " and ".join(parts) or "no CPU"


def _check_answers(address: str) -> None:
    try:
        place = read_address(address)
    except MalformedError as error:
        msg = f"ray_address: {error}; `ray status` names a cluster's"
        raise ConfigError(msg) from error
    try:
        create_connection((place.host, place.port), timeout=_ANSWER).close()
    except OSError as error:
        msg = (
            f"no Ray cluster answers at {place} ({error}); start one: ray start --head --port {place.port}, "
            "and on each further machine: ray start --address HOST:PORT"
        )
        raise ConfigError(msg) from error


def _environment() -> dict[str, str]:
    """Return the environment of sites' processes: what this process imports, they import, too."""
    return {
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        "FLWR_TELEMETRY_ENABLED": "0",
    }


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep this process's way to end, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

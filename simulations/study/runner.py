"""Play a study: records to sites, a run over them, and what came out of each round."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import save_file

from client.state.initial_model import files_of
from client.state.model_parts import set_tensors
from client.task.guard import check_task
from client.task.probe import Example, make_model
from client.task.task import Task, import_task
from privacy.errors import ConfigError, TaskError
from privacy.run.new_manifest import make_manifest
from simulations.engine.federation import personal_tables
from simulations.engine.ray_cluster import cluster_of
from simulations.pools import persons_named
from simulations.study.checkpoints import Checkpoint
from simulations.study.engines import choose, processes_here
from simulations.study.participation import read_participation
from simulations.study.population import Population, read_seconds
from simulations.study.run_settings import as_toml, read_run_settings
from simulations.study.scoring import check_names, mean_of_sites, score
from simulations.study.simulation import Simulation, Spent
from simulations.study.site_models import SiteModels, check_personal, read_personal
from simulations.study.site_privacy import SitePrivacy
from simulations.study.site_records import Reader, deal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from client.settings import Personal
    from privacy.codec.update import Model
    from privacy.run.manifest import Manifest
    from privacy.run.tables import Start
    from simulations.partitions import Partition
    from simulations.pools import Division, Pool
    from simulations.study.checkpoints import Checkpoints
    from simulations.study.run_settings import SimulatedRun
    from simulations.study.simulation import Engine

_TEST = 0.2  # of the records, that no site trains on


@dataclass(frozen=True)
class Study:
    """What is simulated."""

    simulation: Simulation
    given: SimulatedRun  # the run, as it was given
    manifest: Manifest
    engine: Engine
    test: Pool
    held_out: Division | None  # the test records by site, if it is known whose they are
    personal: Personal | None  # what each site trains for itself

    @property
    def toml(self) -> str:
        """The run's settings as run.toml has them, for real sites."""
        return as_toml(self.given.deployed(self.simulation.settings))

    @property
    def personal_toml(self) -> str:
        """`[personal]` as each site has it in its site.toml; empty if sites train nothing for themselves."""
        return personal_tables(self.personal)


@dataclass
class Outcome:
    """What came out of a study: a row for each round, and models."""

    study: Study
    spent: Spent
    own: SiteModels
    rows: list[dict[str, Any]] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)  # after each round, if they are kept; else the last
    stopped: str = ""  # why it ended before its last round
    personal: dict[str, dict[str, Any]] = field(default_factory=dict)  # what that is worth, by site: see `finish`

    @property
    def model(self) -> Model:
        """The shared model at the end."""
        return self.models[-1]

    @property
    def epsilons(self) -> dict[str, float]:
        """Each site's ε, by name."""
        return self.spent.by_site

    @property
    def site_epsilon(self) -> float | None:
        """Each site's own ε, whose unit is the site and not a person; None without such privacy."""
        noise = self.study.simulation.site_noise
        return noise.spent(len(self.rows)) if noise else None

    @property
    def site_delta(self) -> float | None:
        """The δ that belongs to it."""
        noise = self.study.simulation.site_noise
        return noise.delta if noise else None

    @property
    def toml(self) -> str:
        """The run's settings as run.toml has them, for real sites."""
        return self.study.toml

    def add(self, row: dict[str, Any], model: Model, *, keep_models: bool) -> None:
        """Add a round."""
        self.rows.append(row)
        if keep_models:
            self.models.append(model)
        else:
            self.models[-1] = model

    def finish(self) -> Iterator[str]:
        """Train or collect, once the last round is over, what sites have of their own; yield each site once it is done.

        Raises:
            TaskError: if training fails.
        """
        for site, worth in self.own.finish(len(self.rows), self.model):
            if worth:
                self.personal[site] = worth
            yield site

    @property
    def personal_metrics(self) -> dict[str, dict[str, float]]:
        """The means over all held-out records of `shared` and `personal`; empty if sites have nothing of their own."""
        return {
            kind: mean_of_sites((worth["records"], worth[kind]) for worth in self.personal.values())
            for kind in ("shared", "personal")
            if self.personal
        }

    def modules(self) -> list[nn.Module]:
        """Return the kept models, in evaluation mode."""
        return [self.study.simulation.loaded(model).eval() for model in self.models]

    def write_model(self, path: Path) -> None:
        """Write the shared model, as a site would, into a safetensors file."""
        save_file(self.study.simulation.loaded(self.model).state_dict(), path)


def prepare(
    task: type[Task] | Task | str,
    records: Any,  # noqa: ANN401 - see `simulations.pools`
    run: Any = None,  # noqa: ANN401 - see `read_run_settings`
    *,
    sites: int | None = None,
    partition: str | Partition = "iid",
    participation: object = 1.0,
    dropout: float = 0.0,
    site_seconds: object = None,
    deadline: float | None = None,
    site_privacy: SitePrivacy | None = None,
    test: Any = _TEST,  # noqa: ANN401 - a fraction, or records
    personal: object = None,
    engine: str = "auto",
    seed: int = 0,
    device: str = "cpu",
    processes: int | None = None,
    ray_address: str | None = None,
    cpus_per_site: float | None = None,
    gpus_per_site: float | None = None,
    folder: Path,
    resumable: bool = False,
    public: Path | None = None,
) -> Study:
    """Read records, divide them among sites, and choose the engine.

    `public` is the folder with the model that `[start]` names; by default, `find_public` looks for it.

    Raises:
        CloisterError: if anything is wrong, before any round is played.
    """
    _check("sites", sites, Integral, "10", optional=True)
    _check("processes", processes, Integral, "2", optional=True)
    _check("seed", seed, Integral, "1", least=0)
    _check("dropout", dropout, Real, "0.1", least=-inf)
    _check("deadline", deadline, Real, "60.0", least=-inf, optional=True)
    _check("site_privacy", site_privacy, SitePrivacy, "SitePrivacy(8.0)", optional=True)
    _check("engine", engine, str, '"auto"')
    place = read_device(device)
    own, name = named_task(task)
    if getattr(own, "person", None):  # said at once, of a task that declares it
        raise persons_named(name)
    wanted = read_run_settings(run)
    alone = read_personal(personal)
    known = list(wanted.cohort.sizes) if wanted.cohort else []
    reader = Reader(own, name, _examined(own, name))
    dealt = deal(reader, records, test, sites=sites, known=known, partition=partition, seed=seed)
    divided = dealt.training
    settings = wanted.completed(name, divided.sizes)
    manifest = make_manifest(settings, roster_version=1)
    seconds = settings.cohort.round_deadline_seconds if deadline is None else deadline
    population = Population(
        len(divided), read_participation(participation), seed, dropout, read_seconds(site_seconds), seconds
    )
    if site_privacy is None:
        population.check_enough(settings.cohort.minimum, settings.rounds)
    noise = site_privacy.planned(len(divided), settings.rounds, population.participation) if site_privacy else None
    simulation = Simulation(
        own,
        name,
        settings,
        divided,
        population,
        noise,
        place,
        folder,
        resumable,
        processes or processes_here(),
        public or find_public(wanted.start, type(own), run),
    )
    chosen = choose(engine, simulation, manifest, cluster=cluster_of(ray_address, cpus_per_site, gpus_per_site))
    check_personal(alone, simulation, dealt.held_out)
    return Study(simulation, wanted, manifest, chosen, dealt.test, dealt.held_out, alone)


def find_public(start: Start | None, task: type, run: object) -> Path | None:
    """Return the folder with the model that a run starts from: `models/public` beside its file, the task's, or here.

    Raises:
        ConfigError: if none has it.
        RefusedError: if it is no safetensors file.
    """
    if start is None:
        return None
    beside = [Path(run).absolute().parent] if isinstance(run, str | Path) else []
    if source := getattr(sys.modules[task.__module__], "__file__", None):
        beside.append(Path(source).absolute().parent)
    folders = [folder / "models" / "public" for folder in dict.fromkeys((*beside, Path.cwd()))]
    for folder in folders:
        if files_of(folder, start.model):
            return folder
    msg = (
        f"[start] names the safetensors file with SHA-256 {start.model}, which is not in "
        f"{' or '.join(map(str, folders))}; put it there"
    )
    raise ConfigError(msg)


def _check(name: str, given: object, kind: type, example: str, *, least: float = 1, optional: bool = False) -> None:
    """Check an argument, which may be None if it is optional."""
    number: Any = given
    if (given is None and optional) or (isinstance(given, kind) and (not issubclass(kind, Real) or number >= least)):
        return
    msg = f"{name} = {given!r}; write for example {name}={example}"
    raise ConfigError(msg)


def play(
    study: Study, *, every: int = 1, keep_models: bool = False, checkpoints: Checkpoints | None = None
) -> Iterator[tuple[Outcome, dict[str, Any]]]:
    """Play a study's rounds; yield what there is so far, and the last round's row. Closing the generator ends the run.

    Args:
        study: by `prepare`.
        every: in which rounds the model is measured on the test records: every one, every second, and so on.
        keep_models: whether the model after every round is kept.
        checkpoints: where each round's state is kept before its row is yielded. The rows of earlier processes are
            yielded first.
    """
    simulation, spent = study.simulation, Spent(study.manifest)
    module, records = simulation.module().to(simulation.device), study.test.records.to(simulation.device)
    own = SiteModels(simulation, study.engine, study.held_out, study.personal)
    outcome = Outcome(study, spent, own, models=[simulation.start()])
    begun = checkpoints.last() if checkpoints else Checkpoint(0, [])
    own.restore(begun)
    for row in begun.rows:
        model = begun.model(outcome.models[0])
        if keep_models and checkpoints:
            model = replace(model, vector=checkpoints.model(row["round"]))
        outcome.add(row, model, keep_models=keep_models)
        yield outcome, row
    if begun.number:
        spent.rounds[:] = begun.arrays["rounds"]
    if begun.number == simulation.settings.rounds:
        return
    bytes_up, seconds = (begun.rows[-1]["bytes"], begun.rows[-1]["seconds"]) if begun.rows else (0, 0.0)
    with closing(study.engine.play(simulation, begun)) as rounds:  # type: ignore[type-var]  # engines are generators
        for played in rounds:
            spent.add(played.charged)
            bytes_up, seconds = bytes_up + played.bytes_up, seconds + played.seconds
            metrics = None
            if played.number % every == 0 or played.number == simulation.settings.rounds:
                metrics = own.measured(played.model)
                if metrics is None:
                    set_tensors(module.cpu(), played.model)
                    metrics = score(simulation.task, simulation.task_name, module.to(simulation.device), records)
            own.follow(played)
            noise = simulation.site_noise
            row = {
                "round": played.number, "sites": len(played.sites), **(metrics or {}), "epsilon": spent.highest,
                **({"site_epsilon": noise.spent(played.number)} if noise else {}),
                "bytes": bytes_up, "seconds": seconds, "released": played.released,
                "problems": "; ".join(f"{site}: {why}" for site, why in played.problems.items()),
            }  # fmt: skip
            outcome.add(row, played.model, keep_models=keep_models)
            if checkpoints:
                arrays = {**played.arrays, **own.arrays, "model": played.model.vector, "rounds": spent.rounds}
                checkpoints.write(row, arrays, {**played.parts, **own.parts}, keep_model=keep_models)
            yield outcome, row


def read_device(device: str) -> torch.device:
    """Return the device of this name.

    Raises:
        ConfigError: if there is none, here or at all.
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        msg = f"{device!r} is no device; write cpu or cuda"
        raise ConfigError(msg) from error
    if place.type not in {"cpu", "cuda"}:
        msg = f"{device!r}: a simulation trains on cpu or cuda"
        raise ConfigError(msg)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        msg = f"device {device!r}: PyTorch finds no such GPU here; write cpu, or install PyTorch for CUDA"
        raise ConfigError(msg)
    return place


def named_task(task: type[Task] | Task | str) -> tuple[Task, str]:
    """Return a task and the name by which sites import it.

    Raises:
        TaskError: if it cannot be imported by a name, or is no task.
    """
    if isinstance(task, str):
        return import_task(task), task
    kind: type[Any] = task if isinstance(task, type) else type(task)
    if not issubclass(kind, Task):
        msg = f"{kind.__name__} is not a task; derive it from cloister.Task"
        raise TaskError(msg)
    if "." in kind.__qualname__:
        msg = f"{kind.__qualname__} is defined inside something else; define the class at the top of a file or notebook"
        raise TaskError(msg)
    name = f"{kind.__module__}:{kind.__name__}"
    return import_task(name), name


_PASSED: WeakKeyDictionary[type[Task], object] = WeakKeyDictionary()


def _examined(task: Task, name: str) -> Example:
    """Check a task, unless this class, with the same methods and model, has passed here: a sweep simulates many runs.

    Whatever DP-SGD protects is made up or public here. Real sites check a task before every run.

    Raises:
        TaskError: if the task cannot be trained.
    """
    kind = type(task)
    with torch.random.fork_rng(devices=[]):
        looks = repr(make_model(task, 0)), sorted((key, id(value)) for key, value in vars(kind).items())
        if _PASSED.get(kind) == looks:
            return Example.of(task)
        example = check_task(task, name)
        check_names(task, name, make_model(task, 0), example)
    _PASSED[kind] = looks
    return example

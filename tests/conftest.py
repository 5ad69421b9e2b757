"""What several rooms' tests share."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from typing_extensions import override
from xdist.remote import Producer
from xdist.scheduler import LoadGroupScheduling

if TYPE_CHECKING:
    from tests.federations import FederationMaker  # loads torch, which most tests have no use for

# On a busy machine any example may take long; pytest's timeout is what ends a test that hangs.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The suite tries the same examples in every run. For others, and more: make test ARGS=--hypothesis-profile=random
settings.register_profile("cloister", _PATIENT, derandomize=True, max_examples=50)
settings.register_profile("random", _PATIENT)
settings.load_profile("cloister")

_CORES = os.cpu_count() or 1

collect_ignore = ["language.py"]  # it has no examples, and loads transformers, which one test file needs

# Sites wait for the disk whenever they write, a hundred times in a run: folders lie in memory where there is some.
if (_MEMORY := Path("/dev/shm")).is_dir() and disk_usage(_MEMORY).free > 4 << 30:  # noqa: S108 - in folders of pytest
    os.environ.setdefault("TMPDIR", str(_MEMORY))
    tempfile.tempdir = None  # look again

# A shell's job in the background ignores Ctrl-C, and so would the commands that tests end by it: each for two minutes.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all tests are collected: nothing that collecting makes is garbage, but there is a lot to look at


def pytest_collection_finish() -> None:
    """From now on, look for garbage among what tests make, and no longer among modules and test functions."""
    gc.freeze()
    gc.enable()


def pytest_xdist_auto_num_workers() -> int:
    """Run one worker more than there are cores: that of the group `processes` waits for processes."""
    return 1 + _CORES


class _ByFile(LoadGroupScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a worker whole files or groups: what a file's tests share is made once, not by every worker.

    On one or two cores, one worker takes both groups that wait for processes, and the others keep the cores at work. On
    more, the tests would wait for it at the end.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        group = str(super()._split_scope(nodeid))
        if group == "agents" and _CORES <= 2:
            return "processes"
        return nodeid.partition("::")[0] if group == nodeid else group


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadGroupScheduling:
    """Distribute tests by groups and files."""
    return _ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a group's tests on one worker: xdist 3.8 marks them in a field that pytest 9.2 ignores (its issue 1386).

    Groups come first, then files with slow tests: no worker begins with those when the others are done.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.get_closest_marker("xdist_group") is None, item.path not in slow))
    for item in items:
        marked = vars(item).get("_nodeid", item.nodeid)
        if marked != item.nodeid:
            item._id = type(item.id).parse(marked)


@pytest.fixture(scope="session")
def federation_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation that has only its keys and an empty store, to be copied."""
    from server.settings import read_consortium  # noqa: PLC0415
    from server.store.store import Store  # noqa: PLC0415
    from simulations.engine.federation import Federation  # noqa: PLC0415
    from tests.federations import SITES, share_keys  # noqa: PLC0415

    federation = Federation.create(tmp_path_factory.mktemp("keys") / "federation", SITES)
    share_keys(federation)
    Store.open(read_consortium(federation.server)).close()  # makes its tables
    return federation.folder


@pytest.fixture(autouse=True, scope="session")
def derive_keys_in_little_memory() -> Iterator[None]:
    """Derive keys from passphrases in a moment: tests derive hundreds. test_protection.py has one of the usual cost."""
    with pytest.MonkeyPatch.context() as patch:
        if vault := sys.modules.get("privacy.at_rest.vault"):
            patch.setattr(vault, "_MEMORY_KIB", 1 << 10)
        yield


_PROVED, _ATTEMPTED = set[object](), set[object]()
_CHOSEN = dict[object, object]()
_TRYING = ("client/data/", "client/dpsgd/", "client/gradients/", "client/task/", "test_holes", "test_refusals")


@pytest.fixture(autouse=True)
def try_tasks_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sites try a task once per process: most tests open sites anew, with the same task and the same records.

    The tests of these trials always try, and as long as a site does.
    """
    training = sys.modules.get("client.work.training")
    if training is None or any(name in request.node.nodeid for name in _TRYING):
        return
    steps, guard = sys.modules["client.dpsgd.training_steps"], sys.modules["client.task.guard"]
    prove, tensors, choose, attempt = training.prove, training.tensors, steps._choose, steps._try

    def prove_once(task: object, name: str, records: Any, *settings: object) -> None:  # noqa: ANN401 - a site's records
        inputs, targets = records.whole()
        read = tuple(hash(part.cpu().numpy().tobytes()) for part in (*tensors(inputs), targets))
        key = type(task), name, read, *settings
        if vars(task) or key not in _PROVED:
            prove(task, name, records, *settings)
            _PROVED.add(key)

    def choose_once(task: object, model: object, computing: object, way: Any) -> object:  # noqa: ANN401 - a _Way
        key = type(task), computing, tuple(way.failed.items()), way.most
        if vars(task) or key not in _CHOSEN:
            _CHOSEN[key] = choose(task, model, computing, way)
        return _CHOSEN[key]

    def attempt_once(task: object, model: object, computing: object, choice: object) -> None:
        key = type(task), computing, choice
        if vars(task) or key not in _ATTEMPTED:
            attempt(task, model, computing, choice)
            _ATTEMPTED.add(key)

    monkeypatch.setattr(training, "prove", prove_once)
    monkeypatch.setattr(steps, "_choose", choose_once)
    monkeypatch.setattr(steps, "_try", attempt_once)
    monkeypatch.setattr(guard, "_SECONDS", 0.02)  # of the checks that a site makes as long as it has time


@pytest.fixture
def make_federation(federation_keys: Path, tmp_path: Path) -> Iterator["FederationMaker"]:
    """Makes federations in the test's own folder. A process keeps the sites that it opens; not from test to test."""
    from tests.federations import FederationMaker  # noqa: PLC0415

    yield FederationMaker(federation_keys, tmp_path)
    if flower := sys.modules.get("client.flower"):
        flower.open_site.cache_clear()

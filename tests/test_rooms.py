"""Imports point down only, heavy libraries stay in the room that owns them, and our names are ours alone."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cloister", "simulations", "server", "client", "strategies", "transport", "privacy")  # top to bottom

BELOW = {
    "cloister": {"simulations", "server", "client", "strategies", "transport", "privacy"},
    "simulations": {"server", "client", "strategies", "transport", "privacy"},
    "server": {"strategies", "transport", "privacy"},
    "client": {"strategies", "transport", "privacy"},
    "strategies": {"transport", "privacy"},
    "transport": {"privacy"},
    "privacy": set[str](),
}

# Where a library may be imported: a room, or one file.
OWNERS = {
    "tenseal": {"privacy/crypto/seal.py", "cloister/benchmarks/encryption.py"},  # the benchmark measures CKKS beside it
    "zstandard": {"privacy/crypto/seal.py"},
    "nacl": {"privacy/crypto/pedersen.py"},
    "opacus": {
        "client/dpsgd/training_steps.py",
        "client/gradients/",
        "client/dpsgd/crosscheck.py",
        "simulations/tasks/sensors.py",
    },
    "torch": {
        "client/",
        "simulations/",
        "cloister/audit/canaries.py",
        "cloister/audit/gradient_inversion.py",
        "cloister/benchmarks/record_times.py",
        "cloister/benchmarks/simulation_pfl.py",
        "cloister/benchmarks/simulation_ray.py",
        "cloister/benchmarks/simulation_rows.py",
        "cloister/benchmarks/simulation_trials.py",
        "cloister/benchmarks/training_times.py",
        "cloister/benchmarks/zoo.py",
    },
    "sklearn": {"simulations/"},
    "scipy": {
        "privacy/accounting/accountants.py",
        "privacy/accounting/losses.py",
        "privacy/accounting/steps.py",
        "privacy/accounting/auditing.py",
        "cloister/benchmarks/scale.py",
    },
    "pyarrow": {"client/data/", "cloister/benchmarks/record_times.py"},  # the benchmark writes files to read
    "sqlalchemy": {"client/data/sources/sql.py", "server/store/"},
    "alembic": {"server/store/"},
    "PIL": {"client/data/sources/images.py", "cloister/benchmarks/record_times.py", "simulations/tasks/photographs.py"},
    "pydicom": {"client/data/sources/dicom.py", "simulations/tasks/chest.py"},
    "nibabel": {"client/data/sources/nifti.py"},
    "matplotlib": {"cloister/views/plots.py"},
    "fastapi": {"server/api/"},
    "starlette": {"server/api/", "transport/operations/"},
    "sse_starlette": {"server/api/"},
    "uvicorn": {"server/api/", "transport/http_connections.py", "transport/operations/"},
    "h11": {"server/api/"},
    "joserfc": {"server/api/oidc.py"},
    "authlib": {"cloister/browser_login.py"},
    "httpx": {"server/api/oidc.py", "cloister/api_session.py", "cloister/browser_login.py"},
    "grpc": {
        "transport/channel.py",
        "server/hub/hub.py",
        "server/hub/ports.py",
        "server/hub/signing_in.py",
        "server/joining/service.py",
        "client/exchange.py",
        "client/session.py",
        "client/asking_grpc.py",
    },
    "mlflow": {"transport/tracking/mlflow_runs.py"},
    "tensorboard": {"transport/tracking/event_files.py"},
    "prometheus_client": {"transport/operations/", "server/operations/", "client/operations/"},
    "flwr": {
        "transport/",
        "strategies/",
        "server/",
        "client/",
        "simulations/",
        "cloister/benchmarks/simulation_ray.py",
    },  # the benchmark measures Flower's own engine
    "flwr_datasets": set[str](),  # users make its partitioners themselves
    "jax_privacy": {"simulations/study/site_privacy.py"},
    "pandas": {"cloister/result.py", "cloister/tuning.py", "simulations/pools.py"},
    "optuna": {"simulations/tuning/trials.py"},
    "dp_accounting": set[str](),  # tests hold our accountants against it
}


@cache
def _imports(path: Path, *, types: bool = False) -> set[str]:
    """Return every module that a file imports, wherever in it the import stands; those for type checkers if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    modules = set()
    for node in ast.walk(tree):
        if id(node) in for_types and not types:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


EXAMPLES = ROOT / "simulations" / "examples"  # programs that users could write: no part of a room
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.parent != EXAMPLES)


def test_files_import_only_from_rooms_below_their_own_and_libraries_that_their_room_owns() -> None:
    imports = [(str(path.relative_to(ROOT)), module) for path in FILES for module in _imports(path)]
    for name, module in imports:
        room = name.split("/", 1)[0]
        top = module.split(".", 1)[0]
        if top in ROOMS:
            assert top == room or top in BELOW[room], f"{name} imports {module}"
        if top in OWNERS:
            assert any(name.startswith(owner) for owner in OWNERS[top]), f"{name} imports {module}"


def test_no_files_import_each_other_in_a_circle_not_even_for_types() -> None:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    imports = {name: _imports(path, types=True) & (set(names.values()) - {name}) for path, name in names.items()}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        pytest.fail(f"a circle of imports: {circle}; move what they share into a file of its own")


def test_flower_internals_are_touched_in_one_file() -> None:
    public = ("flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation")
    for path in FILES:
        internal = {module for module in _imports(path) if module.startswith("flwr") and not module.startswith(public)}
        if internal:
            assert path.relative_to(ROOT).as_posix() == "transport/flower.py", f"{path} imports {internal}"


def test_no_file_is_long() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400 or path.name.endswith("_pb2.py"), path


def test_no_other_distribution_claims_our_top_level_names() -> None:
    for distribution in distributions():
        if distribution.metadata["Name"] == "cloister":
            continue
        tops = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}
        assert not tops & set(ROOMS), distribution.metadata["Name"]

"""What we use of the insides of Flower, Opacus, torch and SEAL: all of it is listed, and each behaves as we rely on."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.embedding import compute_embedding_grad_sample
from opacus.grad_sample.gsm_base import AbstractGradSampleModule
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.layers.dp_rnn import DPRNNBase, RNNLinear
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from client.dpsgd.torch_draws import Draws
from privacy.codec.ciphertext import SEED_BYTES
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.seal import _HEADER as SEAL_HEADER
from privacy.crypto.seal import Seal
from tests.ports import unused_port
from tests.test_rooms import FILES, ROOT
from transport.grid import StreamingGrid

LIST = ROOT / "docs" / "internals.md"
LIBRARIES = ("flwr", "opacus", "torch", "tenseal")
PUBLIC = {  # modules that these libraries document; what is in others is theirs
    "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.simulation",
    "opacus.accountants", "opacus.distributed", "opacus.grad_sample", "opacus.layers", "opacus.optimizers",
    "opacus.validators", "tenseal",
    "torch", "torch.autograd", "torch.autograd.graph", "torch.backends.cuda", "torch.backends.cudnn",
    "torch.backends.mkldnn", "torch.distributed", "torch.func", "torch.nn", "torch.nn.attention",
    "torch.nn.functional", "torch.nn.utils.rnn", "torch.optim", "torch.profiler", "torch.utils.checkpoint",
    "torch.utils.data", "torch.utils.hooks",
}  # fmt: skip
PRIVATE = re.compile(r"^_[a-zA-Z]\w*$")


@cache
def sources() -> dict[Path, ast.Module]:
    """Every file of our source, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES if not path.name.endswith("_pb2.py")}


# --- The list --------------------------------------------------------------------------------------------------------


def listed() -> dict[str, str]:
    """Every name in the list, and the test that it names."""
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| `(test_\w+)` \|$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def our_own_names() -> set[str]:
    """Names that our source defines or assigns anywhere."""
    names = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES


def imported(tree: ast.Module) -> Iterator[str]:
    """What a file imports of a library's insides."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and of_library(node.module):
            names = {alias.name for alias in node.names}
            private = names if node.module not in PUBLIC else {name for name in names if PRIVATE.fullmatch(name)}
            yield from {f"{node.module}.{name}" for name in private} - PUBLIC
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            yield from (name for name in names - PUBLIC if of_library(name))


def mentioned(tree: ast.Module) -> Iterator[str]:
    """Private names in a file: attributes of anything but standard modules, and strings, if it uses a library."""
    nodes = list(ast.walk(tree))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    libraries = {node.module for node in nodes if isinstance(node, ast.ImportFrom)} | modules
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in modules & sys.stdlib_module_names:
            yield from PRIVATE.findall(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and any(map(of_library, libraries)):
            yield from PRIVATE.findall(node.value)


def inherited(path: Path) -> Iterator[str]:
    """Private names in a file's classes that a library's base class has as well."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == module.__name__:
            bases = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
            for base in bases:
                yield from private_names(kind) & private_names(base)


def private_names(kind: type) -> set[str]:
    try:
        return set(re.findall(r"\b_[a-zA-Z]\w*", inspect.getsource(kind)))
    except OSError:  # written in C
        return set(filter(PRIVATE.match, dir(kind)))


def test_every_internal_that_the_source_uses_is_listed_and_every_one_listed_is_used() -> None:
    own, used = our_own_names(), dict[str, str]()
    for path, tree in sources().items():
        names = {*imported(tree), *(set(mentioned(tree)) - own)}
        if path.relative_to(ROOT).parts[0] in {"client", "simulations", "strategies", "transport", "server"}:
            names |= set(inherited(path))
        used |= dict.fromkeys(names, str(path.relative_to(ROOT)))
    assert {name: where for name, where in used.items() if name not in listed()} == {}, (
        "list it in docs/internals.md, with a test here that it behaves as you rely on"
    )
    text = "".join(path.read_text(encoding="utf-8") for path in sources())
    assert {name for name in listed() if name not in used and not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from torch.nn.modules.module import _global_hooks", "torch.nn.modules.module._global_hooks"),
        ("from torch.nn import _reduction", "torch.nn._reduction"),
        ("from flwr.common import constant", "flwr.common.constant"),
        ("import opacus.utils.batch_memory_manager", "opacus.utils.batch_memory_manager"),
        ("import torch\nx = torch._C", "_C"),
        ("def f(layer): return layer.inner._flat_weights", "_flat_weights"),
        ("from torch import nn\nx = vars(y).get('_backward_hooks')", "_backward_hooks"),
    ],
)
def test_the_search_finds_every_way_to_use_a_name(text: str, name: str) -> None:
    tree = ast.parse(text)
    assert [*imported(tree), *mentioned(tree)] == [name]


def test_every_row_of_the_list_names_a_test_that_is_here() -> None:
    assert len(listed()) == LIST.read_text(encoding="utf-8").count("\n| `")
    assert set(listed().values()) <= {name for name in globals() if name.startswith("test_")}


# --- Flower ----------------------------------------------------------------------------------------------------------


def test_a_message_reads_run_and_node_from_the_task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 12, "train")
    metadata = []
    for number in (7, 8):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, number, number + 10
        metadata.append(Message(RecordDict(), 12, "train").metadata)
    assert [(message.run_id, message.src_node_id, message.dst_node_id) for message in metadata] == [
        (7, 17, 12),
        (8, 18, 12),
    ]


def test_a_message_has_the_id_that_is_written_to_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), 12, "train")
    assert message.metadata.message_id == ""
    message.metadata.__dict__["_message_id"] = "chosen"
    assert message.metadata.message_id == "chosen"
    for content in (RecordDict(), Error(1, "no")):
        assert Message(content, reply_to=message).metadata.reply_to_message_id == "chosen"


def test_a_message_belongs_to_the_run_that_is_written_to_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    message = Message(RecordDict(), 12, "train")
    message.metadata.__dict__["_run_id"] = 8
    assert message.metadata.run_id == 8


def test_a_run_is_described_by_its_number() -> None:
    assert Run.create_empty(7).run_id == 7


def test_flower_asks_one_name_before_it_calls_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"  # by `transport.flower`, although this file imports flwr first
    called = list[str]()
    monkeypatch.setitem(telemetry.state, "source", "a test")  # else it is written into the home directory
    monkeypatch.setattr("urllib.request.urlopen", lambda request, **_: called.append(request.full_url))
    telemetry.create_event(telemetry.EventType.PING, None)
    assert called == []


def test_a_grid_has_no_method_that_streaming_does_not_pass_on() -> None:
    assert {name for name in vars(Grid) if not name.startswith("_")} <= set(vars(StreamingGrid))
    assert NodeInfo(node_id=7).node_id == 7


# --- Opacus ----------------------------------------------------------------------------------------------------------


def test_importing_cloister_leaves_opacus_as_it_is_for_others() -> None:
    script = """
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping as Fast
tables = GradSampleModule.GRAD_SAMPLERS, Fast.GRAD_SAMPLERS, Fast.NORM_SAMPLERS
before = [dict(table) for table in tables]
import cloister, client.app, client.dpsgd.training_steps, cloister.audit.canaries
assert [dict(table) for table in (GradSampleModule.GRAD_SAMPLERS, Fast.GRAD_SAMPLERS, Fast.NORM_SAMPLERS)] == before
"""
    finished = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr


class Scale(nn.Module):
    """A layer for which Opacus has no sampler."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.by


def test_opacus_finds_samplers_through_the_class_of_the_module() -> None:
    def sampler(layer: Scale, activations: list[torch.Tensor], backprops: torch.Tensor) -> dict[object, torch.Tensor]:
        layers.append(layer)
        return {layer.by: activations[0] * backprops}

    layers: list[Scale] = []
    own = type("Own", (GradSampleModule,), {"GRAD_SAMPLERS": {Scale: sampler}})
    for kind in (GradSampleModule, own):
        kind(Scale())(torch.ones(2, 3)).sum().backward()
    assert len(layers) == 1


def test_opacus_samples_an_embedding_record_by_record() -> None:
    layer, indices, back = nn.Embedding(4, 2), torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2, 2)
    sample: Any = compute_embedding_grad_sample  # it says that activations are one tensor, and takes a list
    (samples,) = sample(layer, [indices], back).values()
    assert samples.tolist() == [[[1, 1], [1, 1], [0, 0], [0, 0]], [[0, 0], [2, 2], [0, 0], [0, 0]]]


def test_opacus_keeps_state_of_a_pass_that_we_delete() -> None:
    inputs, layer = torch.rand(2, 3), nn.Linear(3, 1, bias=False)
    model: Any = GradSampleModule(layer, loss_reduction="sum")
    weight: Any = layer.weight  # to which Opacus adds attributes
    for _ in range(2):
        weight.grad_sample, weight._forward_counter = None, 0
        vars(weight).pop("_current_grad_sample", None)
        for left in ("activations", "max_batch_len"):
            vars(layer).pop(left, None)
        model(inputs)  # nothing depends on it
        model(inputs).sum().backward()
        assert weight._forward_counter == len(vars(layer)["activations"]) == 1
        assert weight.grad_sample is None
        assert torch.equal(weight._current_grad_sample.flatten(1), inputs)


def test_opacus_builds_recurrent_layers_from_linear_ones() -> None:
    for kind in (DPRNN, DPGRU, DPLSTM):
        layer = kind(2, 3, batch_first=True)
        assert isinstance(layer, DPRNNBase)
        assert sum(isinstance(part, RNNLinear) for part in layer.modules()) == 2
        assert issubclass(RNNLinear, nn.Linear)


def test_opacus_keeps_the_model_as_it_was_given() -> None:
    model = nn.Linear(2, 1)
    wrapped = GradSampleModule(model)
    assert isinstance(wrapped, AbstractGradSampleModule)
    assert wrapped._module is model
    assert wrapped.to_standard_module() is model


def test_opacus_skips_the_step_that_was_announced() -> None:
    parameter: Any = nn.Parameter(torch.zeros(1))  # to which Opacus adds attributes
    optimizer = DPOptimizer(
        torch.optim.SGD([parameter], lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1
    )
    optimizer.signal_skip_step()
    assert optimizer._check_skip_next_step() is True
    assert optimizer._check_skip_next_step() is False
    for skipped in (True, False):
        parameter.summed_grad = torch.ones(1)
        optimizer._is_last_step_skipped = skipped
        optimizer.zero_grad()
        assert (parameter.summed_grad is not None) == skipped


# --- torch -----------------------------------------------------------------------------------------------------------


def test_torch_has_a_base_class_for_each_family_of_layers() -> None:
    for dimensions in ("1d", "2d", "3d"):
        assert issubclass(getattr(nn, f"BatchNorm{dimensions}"), _BatchNorm)
        assert issubclass(getattr(nn, f"InstanceNorm{dimensions}"), _InstanceNorm)
        assert issubclass(getattr(nn, f"Dropout{dimensions}"), _DropoutNd)
    for kind in (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout):
        layer = kind(0.5)
        assert isinstance(layer, _DropoutNd)
        layer.p = 0.0
        assert torch.equal(layer(torch.ones(99)), torch.ones(99))
    assert nn.modules.instancenorm._InstanceNorm is _InstanceNorm


def test_a_module_computes_with_the_tensors_in_its_table() -> None:
    layer = nn.Linear(2, 1, bias=False)
    own, table = layer.weight, cast("dict[str, torch.Tensor]", layer._parameters)
    table["weight"] = torch.full((1, 2), 3.0)
    assert layer(torch.ones(1, 2)).item() == 6
    table["weight"] = own
    assert layer.weight is own


@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"])
def test_a_convolution_states_its_padding(padding: tuple[int, int] | str) -> None:
    layer, inputs = nn.Conv2d(1, 1, (3, 5), padding=padding), torch.rand(1, 1, 5, 6)
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice)
    assert torch.equal(layer(inputs), functional.conv2d(padded, layer.weight, layer.bias))


def test_a_rendezvous_yields_store_rank_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": unused_port()}
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, **place}.items():
        monkeypatch.setenv(name, str(value))
    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=20)))
    store.set("said", "this")
    assert (store.get("said"), rank, size) == (b"this", 0, 1)


def test_every_torch_operation_that_draws_is_detected() -> None:
    seen = list[bool]()

    class Watching(TorchDispatchMode):
        @override
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            seen.append(torch.Tag.nondeterministic_seeded in func.tags)
            return func(*args, **(kwargs or {}))

    ones = torch.ones(3)
    with Watching():  # type: ignore[no-untyped-call]  # torch's
        functional.dropout(ones)
        torch.rand(2)
        torch.add(ones, ones)
    assert seen.count(True) == 2
    assert not seen[-1]


def test_a_mode_may_leave_the_compiler_alone() -> None:
    class Usual(TorchDispatchMode):
        @override
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    assert hasattr(Usual.__torch_dispatch__, "__wrapped__")  # by what loads `torch._dynamo` when it is called
    assert not hasattr(Draws.__torch_dispatch__, "__wrapped__")


def test_torch_asks_a_mode_about_every_function_of_tensors() -> None:
    computed = torch.ones(3, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="graph leaves"):
        deepcopy([computed])
    functions: list[object] = []

    class Copying(TorchFunctionMode):
        @override
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            functions.append(func)
            return "copied" if func is torch.Tensor.__deepcopy__ else func(*args, **(kwargs or {}))

    scores, column = torch.zeros(1, 2), torch.zeros(1, 1)
    uses: dict[Any, Any] = {
        functional.cross_entropy: lambda: functional.cross_entropy(scores, torch.zeros(1, dtype=torch.long)),
        functional.mse_loss: lambda: functional.mse_loss(scores, scores),
        functional.binary_cross_entropy_with_logits: lambda: nn.BCEWithLogitsLoss()(scores, scores),
        torch.Tensor.float: column.float,
        torch.Tensor.long: column.long,
        torch.Tensor.squeeze: lambda: column.squeeze(1),
        torch.squeeze: lambda: torch.squeeze(column, 1),
        torch.Tensor.unsqueeze: lambda: column.unsqueeze(1),
        torch.unsqueeze: lambda: torch.unsqueeze(column, 1),
        torch.Tensor.item: column.item,
        torch.Tensor.tolist: column.tolist,
        torch.Tensor.numpy: column.numpy,
        torch.Tensor.__array__: lambda: np.asarray(column),
        torch.Tensor.__float__: lambda: float(column),
        torch.Tensor.__bool__: lambda: bool(column),
        torch.Tensor.__dlpack__: lambda: np.from_dlpack(column),
        torch.Tensor.data_ptr: column.data_ptr,
        torch.Tensor.add_: lambda: column.add_(1),
        torch.rand: lambda: torch.rand(2),
    }
    with Copying():
        assert deepcopy([computed]) == ["copied"]
        for func, use in uses.items():
            functions.clear()
            use()
            assert func in functions


def test_torch_calls_back_after_every_step() -> None:
    seen: list[object] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    for optimizer in optimizers:
        optimizer.step()
    handle.remove()
    optimizers[0].step()
    assert seen == optimizers


# --- SEAL ------------------------------------------------------------------------------------------------------------


def test_seal_saves_a_seeded_ciphertext_where_we_read_it() -> None:
    seal = Seal()
    key = seal.new_key()
    message = np.arange(RING_DEGREE, dtype=np.uint64)
    c0, seed = seal.encrypt(seal.encryptor(key), message)
    blob = seal._save(seal._ciphertext(c0, seed))  # SEAL's own: its second half is written out
    magic, header, major, minor, compression, _, total = SEAL_HEADER.unpack_from(blob)
    assert (magic, header, major, compression) == (0xA15E, 16, 4, 0)
    assert minor >= 0
    assert total == len(blob) == 113 + 2 * 8 * RING_DEGREE
    assert np.array_equal(np.frombuffer(blob, "<u8", RING_DEGREE, 113), c0)
    assert np.array_equal(np.frombuffer(blob[-8 * RING_DEGREE :], "<u8"), seal.expand(seed))
    fresh = seal._save(seal.encryptor(key).encrypt_zero_symmetric())
    assert len(fresh) == 113 + 8 * RING_DEGREE + 17 + SEED_BYTES
    assert np.array_equal(seal.decrypt(seal.decryptor(seal.read_key(seal.key_bytes(key))), c0, [seed]), message)

"""Numbers on their way into ciphertexts and out of them, for the golden files: more than `golden_rounds.py` shows."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from client.state.checkpoint import Checkpoint
from privacy.analytics.sketch import encode
from privacy.analytics.statistics import Column, Form, encoding_bound
from privacy.codec.packing import Packing, pack, pack_with_share, unpack
from privacy.codec.update import Constant, Layout, Update
from privacy.noise.discrete import reach
from privacy.noise.noise_shares import share_for
from privacy.noise.randomness import Randomness
from privacy.run.averaging import Averaging
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.settings import Encryption, Privacy, Training
from strategies.advance import State, advance, average
from strategies.algorithm import Run
from strategies.averaging import include, next_bound
from strategies.registry import algorithm_of, completed, shipped
from tests.privacy.consortium import CHARGE, joined, packed, private, run_settings, signing_key
from tests.privacy.golden_rounds import SHOWN, floats_digest, model_of, values_of, words_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.codec.packing import Profile

_KEY = sha256(repr((7, "numbers")).encode()).hexdigest()
_CASES: list[tuple[Profile, int, float, tuple[float, ...], int]] = [
    ("compact", 3, 1.0, (1.0, 2 / 3, 1 / 3), 12_300),  # the first of each goes into a second ciphertext
    ("precise", 4, 2.0**-5, (1.0, 0.5), 8_200),
    ("dense", 5, 0.75, (0.3, 1.0, 0.9), 16_390),
    ("dense", 272, 1e-5, (1.0,), 5),
]


def numbers() -> dict[str, object]:
    """Return all of it."""
    return {
        "rounding_key": _KEY,
        "packing": [_packing(*case) for case in _CASES],
        "ranges": _ranges(),
        "averaging": _averaging(Averaging(0.5, 0.0), 5),
        "ema": _averaging(Averaging(0.0, 0.5), 12),  # the window grows until the tenth
        "algorithms": _algorithms(),
        "shared_noise": _shared_noise(),
        "statistics": _statistics(),
        "constants": _constants(),
    }


def _constants() -> dict[str, object]:
    """A layout with tensors that no round changes."""
    frozen, buffer = np.arange(6, dtype="<f4"), np.array([7], "<i8")
    constants = (
        Constant.of("embedding.weight", "F32", (2, 3), frozen.view(np.uint8)),
        Constant.of("positions", "I64", (), buffer.view(np.uint8), saved=False),
    )
    layout = Layout((("head.weight", (1, 3)), ("head.bias", (1,))), constants)
    return {
        "layout": layout.shapes,
        "constants": [
            [constant.name, constant.dtype, constant.shape, constant.values.tobytes().hex()] for constant in constants
        ],
        "layout_digest": layout.digest,
    }


def _packing(profile: Profile, cohort: int, bound: float, weights: tuple[float, ...], size: int) -> dict[str, object]:
    packing = Packing.of(profile, cohort=cohort, update_bound=bound, max_weight=1.0)
    scale, updates, total = (
        150 / bound,
        list[dict[str, object]](),
        np.zeros((packing.ciphertexts(size), 4096), np.uint64),
    )
    for factor, weight in enumerate(weights, start=3):
        stream = pack(private(values_of(size, factor, scale)), weight, packing, Randomness.seeded(7, "numbers"))
        block = joined(stream.blocks)
        total += block
        updates.append({
            "factor": factor,
            "weight": weight,
            "packed": words_digest(block),
            "first_coefficients": block[0, :SHOWN].tolist(),
            "left_over": floats_digest(stream.residual),
        })  # fmt: skip
    mean = unpack([total], size, weights, packing).vector
    return {
        "profile": profile,
        "cohort": cohort,
        "update_bound": bound,
        "size": size,
        "scale": scale,
        "levels": packing.levels,
        "updates": updates,
        "sum": words_digest(total),
        "mean": floats_digest(mean),
        "first_of_mean": mean[:SHOWN].tolist(),
    }


def _ranges() -> list[dict[str, object]]:
    cases = [(1.0, 3, 0.05), (1.0, 3, 0.9), (1.0, 3, 1e-9), (1.0, 3, 0.0), (0.75, 2, 0.01), (1.0, 4, 2.0**-6)]
    return [
        {
            "update_bound": ceiling,
            "contributors": contributors,
            "largest": float(np.float32(largest)),
            "next": next_bound(Update(np.array([0.0, -largest], np.float32)), contributors, ceiling),
        }
        for ceiling, contributors, largest in cases
    ]


def _averaging(averaging: Averaging, rounds: int) -> dict[str, object]:
    """Rounds that are averaged, as `client.state.models` does it, after those that are not."""
    layout = Layout((("all", (40,)),))
    model, mean, rows = model_of(layout), np.empty(0, np.float32), list[dict[str, object]]()
    for number in range(1, rounds + 1):
        model, averaged = average(model, Update(values_of(40, number, 7000))), averaging.includes(number, rounds)
        count = sum(averaging.includes(round_number, rounds) for round_number in range(1, number + 1))
        if averaged and count > 1:
            include(mean, model.vector, averaging.window(count))
        else:
            mean = model.vector.copy()
        kept = Checkpoint("", number, model, 1.0, average=replace(model, vector=mean).digest)
        rows.append({
            "averaged": averaged,
            "model": model.digest,
            "mean": kept.average,
            "digest": kept.digest,
            "first_of_mean": mean[:SHOWN].tolist(),
        })  # fmt: skip
    return {"layout": layout.shapes, "rounds": rows, "averaging": averaging.share, "ema_decay": averaging.decay}


def _algorithms() -> dict[str, object]:
    """Three rounds of every algorithm that ships, to some of which not all sites contribute."""
    layout, weights = Layout((("all", (40,)),)), {"north": 1.0, "south": 0.5, "west": 0.25}
    run, entries = Run(5, 0.25, weights), dict[str, object]()
    for name in shipped():
        extra: dict[str, Any] = {"steps": {"south": 2, "west": 4}} if name == "fednova" else {}
        settings = completed(replace(run_settings(), strategy={"name": name, **extra}))
        document = sign_manifest(settings, (key := signing_key("coordinator")), roster_version=3)
        algorithm = algorithm_of(open_manifest(document.to_bytes(), key.public_key())[0], "north")
        model, rounds = model_of(layout), list[dict[str, object]]()
        state = State.start(algorithm, layout.size)
        for number, absent in enumerate(("none", "south", "none"), start=1):
            there = {site: weight for site, weight in weights.items() if site != absent}
            mean = Update(values_of(40, number, 7000))
            model, state = advance(algorithm, run, model, state, mean, there)
            rounds.append({
                "contributors": list(there),
                "model": model.digest,
                "state": state.digest,
                "digest": Checkpoint("", number, model, 1.0, state=state).digest,
                "first_of_model": model.vector[:SHOWN].tolist(),
            })  # fmt: skip
        entries[name] = {"strategy": settings.strategy, "rounds": rounds}
    return {"layout": layout.shapes, "steps": run.steps, "weights": weights, "strategies": entries}


def _shared_noise() -> dict[str, object]:
    settings = replace(
        run_settings(),
        training=Training(steps_per_round=1, sample_rate=0.25, learning_rate=0.5),
        privacy=Privacy(max_grad_norm=2.0, noise_multiplier=0.8, noise="shared", colluding_sites=1),
        encryption=Encryption(update_bound=0.25, profile="precise"),
    )
    document = sign_manifest(settings, signing_key("coordinator"), roster_version=3)
    manifest, _ = open_manifest(document.to_bytes(), signing_key("coordinator").public_key())
    model, weight = model_of(Layout((("all", (20,)),))), manifest.weight("south")
    share = share_for(manifest, model)
    values = values_of(20, 3, 1000)
    values[7] = 1.0  # is cut
    blocks = pack_with_share(
        Update(values.copy()), CHARGE, weight, manifest.packing, Randomness.seeded(7, "numbers"), share.variance
    ).blocks
    fields = joined(blocks)[0, :20].astype(np.int64)
    return {
        "manifest": document.to_bytes().decode(),
        "weight": weight,
        "sensitivity": share.sensitivity,
        "variance": share.variance,
        "values": values.tolist(),
        "fields": fields.tolist(),
        "noise": (fields - _unnoised(values, weight, manifest.packing, share.variance)).tolist(),
    }


def _unnoised(values: NDArray[np.float32], weight: float, packing: Packing, variance: int) -> NDArray[np.int64]:
    """Return the fields as they are before the noise: those of `packed`, cut to leave it room."""
    margin = reach(variance)
    fields = packed(values, weight, packing, Randomness.seeded(7, "numbers"))[0, :20].astype(np.int64)
    return np.clip(fields, margin, packing.levels - 1 - margin)


def _statistics() -> dict[str, object]:
    form = Form((Column("age", 0.0, 100.0), Column("pressure", 60.0, 240.5)), classes=(0.0, 1.0), bins=5)
    values = np.array([[0.0, 100.0], [37.5, 240.5], [61.25, 300.0], [100.0, 59.0], [20.0, 150.25]])
    labels = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    return {
        "columns": [[column.name, column.low, column.high] for column in form.columns],
        "classes": list(form.classes),
        "bins": form.bins,
        "values": values.tolist(),
        "labels": labels.tolist(),
        "layout": form.layout.shapes,
        "layout_digest": form.layout.digest,
        "edges": [encode(np.array([edge / form.bins]), form.bins).tolist() for edge in range(form.bins + 1)],
        "vector": form.total(values, labels).tolist(),
        "noise_multiplier": 1.5,
        "largest_size": 40,
        "update_bound": encoding_bound(1.5, 40),
    }

"""Second reader: from parameters to coefficients and back, and what else is computed of them; see `signed.py`."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tests.second.ring import N, uniform
from tests.second.signed import model_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = N - 1


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def packed_floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def floats_digest(values: Sequence[float]) -> str:
    return sha256(packed_floats(values)).hexdigest()


def words_digest(rows: Sequence[Sequence[int]]) -> str:
    return sha256(b"".join(struct.pack(f"<{len(row)}Q", *row) for row in rows)).hexdigest()


# How the golden files' long vectors are written down.


def model_values(size: int) -> list[float]:
    return [float32((7919 * place % 2001 - 1000) / 1000) for place in range(size)]


def update_values(size: int, factor: int, scale: float) -> list[float]:
    return [float32((31 * factor * place % 401 - 200) / scale) for place in range(size)]


# Packing.


def fields(values: Sequence[float], unit: float, levels: int, key: bytes, margin: int = 0) -> list[int]:
    """Return the fields of values, rounded with the numbers of a stream."""
    middle, top = (levels - 1) / 2, levels - 1 - margin
    rounded = zip(values, uniform(key, len(values)), strict=True)
    return [math.floor(min(max((x / unit + middle) + u, margin), top)) for x, u in rounded]


def unit_of(bound: float, levels: int, weight: float) -> float:
    return 2 * bound / (levels - 1) / weight


def joined(integers: Sequence[int], count: int, bits: int) -> list[list[int]]:
    """Return ciphertexts' coefficients: so many fields of so many bits in each, the last one left free."""
    rows = [[0] * N for _ in range(-(-len(integers) // (count * SLOTS)))]
    for place, field in enumerate(integers):
        chunk, column = divmod(place, SLOTS)
        row, k = divmod(chunk, count)
        rows[row][column] += field << bits * k
    return rows


def separated(rows: Sequence[Sequence[int]], count: int, bits: int) -> list[int]:
    mask = (1 << bits) - 1
    return [row[place] >> bits * k & mask for row in rows for k in range(count) for place in range(SLOTS)]


def left_over(values: Sequence[float], integers: Sequence[int], unit: float, levels: int) -> list[float]:
    middle = (levels - 1) / 2
    return [float32(x - float32((field - middle) * unit)) for x, field in zip(values, integers, strict=True)]


def mean_of(sums: Sequence[int], weights: Sequence[float], bound: float, levels: int) -> list[float]:
    whole = float(sum(map(Fraction, weights)))
    unit, middle = 2 * bound / (levels - 1) / whole, len(weights) * (levels - 1) / 2
    return [float32((field - middle) * unit) for field in sums]


def plus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [float32(a + b) for a, b in zip(one, other, strict=True)]


def next_bound(largest: float, contributors: int, bound: float) -> float:
    """Return the range after a sum whose mean has this largest value."""
    if largest == 0:
        return bound
    wanted = 4 * math.sqrt(contributors) * largest
    power = 2.0**-1074
    while power <= wanted:
        power *= 2
    return min(bound, max(power, bound * 2.0**-20))


# Averaging, shared noise, statistics.


def averaged(mean: Sequence[float], model: Sequence[float], count: int, decay: float) -> list[float]:
    window = min(1 / (1 - decay), 1 + count / 9) if decay else count
    return [float32(a + (b - a) / window) for a, b in zip(mean, model, strict=True)]


def begun(strategy: dict[str, Any], size: int) -> dict[str, list[float]]:
    """Return what a strategy keeps beside the model before the first round."""
    name, tau = strategy["name"], strategy.get("tau", 0.0)
    starts = {"fedavgm": {"velocity": 0.0}, "scaffold": {"c": 0.0}, "feddyn": {"h": 0.0}}
    adaptive = {"m": 0.0, "v": tau * tau}
    values = adaptive if name in {"fedadagrad", "fedadam", "fedyogi"} else starts.get(name, {})
    return {key: [value] * size for key, value in values.items()}


def applied(
    strategy: dict[str, Any], steps: int, weights: dict[str, float], there: Sequence[str],
    model: Sequence[float], state: dict[str, list[float]], mean: Sequence[float],
) -> tuple[list[float], dict[str, list[float]]]:  # fmt: skip
    """Return the next model and state: `there` contributed."""
    rows = [
        _moved(strategy, steps, weights, there, w, {key: values[place] for key, values in state.items()}, x)
        for place, (w, x) in enumerate(zip(model, mean, strict=True))
    ]
    return [float32(w) for w, _ in rows], {key: [kept[key] for _, kept in rows] for key in state}


def _moved(
    strategy: dict[str, Any], steps: int, weights: dict[str, float], there: Sequence[str],
    w: float, kept: dict[str, float], x: float,
) -> tuple[float, dict[str, float]]:  # fmt: skip
    name, eta = strategy["name"], strategy.get("server_learning_rate", 1.0)
    whole = math.fsum(weights[site] for site in there)
    share = whole / math.fsum(weights.values())
    if name in {"fedavg", "fedprox"}:
        return w + x, {}
    if name == "fednova":
        total_steps = math.fsum(weights[site] * strategy["steps"].get(site, steps) for site in there)
        return w + total_steps / math.fsum(weights[site] * steps for site in there) * x, {}
    if name == "fedavgm":
        velocity = strategy["momentum"] * kept["velocity"] + x
        return w + eta * velocity, {"velocity": velocity}
    if name == "scaffold":
        return w + eta * x, {"c": kept["c"] - share * (kept["c"] + x)}
    if name == "feddyn":
        h = kept["h"] - strategy["alpha"] * share * x
        return w + x - h / strategy["alpha"], {"h": h}
    m = strategy["beta_1"] * kept["m"] + (1 - strategy["beta_1"]) * x
    v, square = kept["v"], x * x
    if name == "fedadagrad":
        v = v + square
    elif name == "fedadam":
        v = strategy["beta_2"] * v + (1 - strategy["beta_2"]) * square
    else:
        sign = (v > square) - (v < square)
        v = v - (1 - strategy["beta_2"]) * square * sign
    return w + eta * m / (math.sqrt(v) + strategy["tau"]), {"m": m, "v": v}


def state_digest(state: dict[str, list[float]]) -> str:
    """Return the digest of what a strategy keeps; empty if that is nothing."""
    if not state:
        return ""
    values = b"".join(struct.pack(f"<{len(vector)}d", *vector) for vector in state.values())
    return sha256(b"cloister state" + json.dumps(list(state)).encode() + values).hexdigest()


def checkpoint_digest(model: str, state: str) -> str:
    return sha256(b"cloister checkpoint" + bytes.fromhex(model + state)).hexdigest() if state else model


def average_digest(layout: list[Any], model: Sequence[float], mean: Sequence[float]) -> str:
    both = [bytes.fromhex(model_digest(layout, packed_floats(vector))) for vector in (model, mean)]
    return sha256(b"cloister average" + b"".join(both)).hexdigest()


def share(settings: dict[str, Any], levels: int, parameters: int, length: float) -> tuple[float, float, int]:
    """Return C in levels, Δ and s² of a run with shared noise."""
    training, privacy, cohort = settings["training"], settings["privacy"], settings["cohort"]
    bound, largest = settings["encryption"]["update_bound"], max(cohort["sizes"].values())
    batch = max(1.0, training["sample_rate"] * largest)
    clipped = privacy["max_grad_norm"] * training["learning_rate"] / batch / (2 * bound / (levels - 1))
    tiny = 2.0**-24 * (levels - 1)
    moved = clipped + math.sqrt(parameters) + tiny * (length / bound + 4 * math.sqrt(parameters))
    colluding = 1 if privacy["colluding_sites"] is None else privacy["colluding_sites"]
    honest = cohort["minimum"] - colluding
    return clipped, moved, math.ceil((privacy["noise_multiplier"] * moved) ** 2 / honest)


def fits(clipped: float, moved: float, variance: int, levels: int) -> bool:
    """Whether a model suits a share of the noise."""
    return moved - clipped <= 0.05 * clipped and variance >= 64 and 4 * math.isqrt(144 * variance) <= levels - 1


def rates(training: dict[str, Any], steps: int, rounds: int) -> list[float]:
    """Return the learning rate of every step of a run."""
    schedule, total = training["schedule"], steps * rounds
    warm = round(schedule["warm_up"] * total)
    return [
        training["learning_rate"] * min(1.0, n / (warm + 1))
        * _decayed(schedule, max(0, n - warm - 1) / max(1, total - warm), 1 + (n - 1) // steps)
        for n in range(1, total + 1)
    ]  # fmt: skip


def _decayed(schedule: dict[str, Any], p: float, number: int) -> float:
    match schedule["name"]:
        case "cosine":
            return float(1 - (1 - schedule["final"]) * (1 - math.cos(math.pi * p)) / 2)
        case "linear":
            return float(1 - (1 - schedule["final"]) * p)
        case "step":
            return float(schedule["factor"] ** ((number - 1) // schedule["every"]))
    return 1.0


def kernel(bins: int) -> list[list[float]]:
    """Return R: `bins` rows, one column more."""
    angles = [math.pi * (2 * m + 1) / bins for m in range(bins)]
    length = math.sqrt(sum(1 / math.sin(angle / 2) for angle in angles) / (2 * bins))
    return [
        [
            sum(math.cos(angle * (i - j)) / math.sqrt(2 * math.sin(angle / 2)) for angle in angles) / (bins * length)
            for j in range(bins + 1)
        ]
        for i in range(bins)
    ]


def survey(columns: Sequence[Sequence[Any]], classes: Sequence[float], bins: int, values: Sequence[Sequence[float]],
           labels: Sequence[float]) -> list[float]:  # fmt: skip
    """Return a site's vector without noise."""
    single, matrix = math.sqrt(math.sqrt(len(columns))), kernel(bins)
    whole = math.sqrt((2 if classes else 1) * single**2 + len(columns))
    parts = [[single * len(values)]]
    for number, (_, low, high) in enumerate(columns):
        total = [0.0] * bins
        for record in values:
            place = min(max((record[number] - low) / (high - low), 0.0), 1.0) * bins
            below = min(math.floor(place), bins - 1)
            share = place - below
            for i in range(bins):
                total[i] += (1 - share) * matrix[i][below] + share * matrix[i][below + 1]
        parts.append(total)
    parts.append([single * labels.count(value) for value in classes])
    return [value / whole for part in parts for value in part]


def survey_layout(columns: Sequence[Sequence[Any]], classes: Sequence[float], bins: int) -> list[Any]:
    named = [[f"{name} {low!r} {high!r}", [bins]] for name, low, high in columns]
    return [["count", [1]], *named, ["classes " + " ".join(map(repr, classes)), [len(classes)]]]


def evaluation(
    metrics: dict[str, list[float | None]], losses: Sequence[float | None], loss_bound: float | None
) -> list[float]:
    """Return a site's vector of an evaluation, without noise; None where there is no number."""
    columns = [[1.0] * len(losses)]
    columns += [[min(max(value or 0.0, 0.0), 1.0) for value in column] for column in metrics.values()]
    if loss_bound is not None:
        cut = [loss_bound if value is None else min(max(value, 0.0), loss_bound) for value in losses]
        columns.append([value / loss_bound for value in cut])
    return [math.fsum(column) / math.sqrt(len(columns)) for column in columns]


def evaluation_layout(metrics: Sequence[str], loss_bound: float | None) -> list[Any]:
    return [[name, [1]] for name in ["count", *metrics, *([] if loss_bound is None else [f"loss 0.0 {loss_bound!r}"])]]

# %% [markdown]
# # Privacy against accuracy
#
# How much accuracy does an ε cost, and what may one turn to get some back? Eight sites share 1,797 handwritten digits.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cloister import Task, simulate


class Digits(Task):
    metrics = ["accuracy"]

    def model(self):
        return nn.Linear(64, 10)

    def example(self):
        return torch.rand(10, 64), torch.arange(10)

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)


pixels, labels = load_digits(return_X_y=True)
records = pixels / 16, labels


def accuracy(privacy, rounds=20, seed=0, **training):
    run = {"rounds": rounds, "privacy": privacy, "training": {"learning_rate": 1.0} | training}
    return simulate(Digits, records, run, sites=8, seed=seed).metrics["accuracy"]


# %% [markdown]
# ## The curve
#
# ε is the cost of the *whole* run for each person, at δ = 10⁻⁵. Cloister finds the noise for it. The noise is fresh in
# every run, so we repeat each, also with other test records, and show the mean and the range.

# %%
epsilons, repeats = [0.3, 1.0, 3.0, 10.0], 3
curve = [[accuracy({"epsilon": epsilon}, seed=seed) for seed in range(repeats)] for epsilon in epsilons]
without = [accuracy({"noise_multiplier": 0.0}, seed=seed) for seed in range(repeats)]

# %%
means = [sum(values) / repeats for values in curve]
figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
axes.plot(epsilons, means, marker="o", label="private")
axes.fill_between(epsilons, [min(values) for values in curve], [max(values) for values in curve], alpha=0.2)
axes.axhline(sum(without) / repeats, color="grey", linestyle="--", label="no noise")
axes.set(xscale="log", xlabel="ε of the whole run", ylabel="test accuracy", title="Digits, 8 sites, 20 rounds")
axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What one may turn
#
# At the same ε, one can take more steps with more noise each, or fewer with less; and use more or fewer records in a
# step. A large `sample_rate` makes steps expensive and the gradient strong against the noise.

# %%
rates, all_rounds = [0.05, 0.2, 1.0], [5, 20, 60]
grid = [
    [accuracy({"epsilon": 1.0}, rounds, sample_rate=rate, steps_per_round=2) for rate in rates] for rounds in all_rounds
]

# %%
figure, axes = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
image = axes.imshow(grid, cmap="viridis")
for row, values in enumerate(grid):
    for column, value in enumerate(values):
        dark = value < (image.norm.vmin + image.norm.vmax) / 2
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
axes.set_xticks(range(len(rates)), rates)
axes.set_yticks(range(len(all_rounds)), all_rounds)
axes.set(xlabel="sample rate", ylabel="rounds, of two steps each", title="Accuracy at ε = 1")
plt.show()

# %% [markdown]
# The site's ledger counts what a run costs, before it reads a record. `cloister ledger plan SITE run.toml` says it
# without a run.

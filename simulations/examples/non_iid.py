# %% [markdown]
# # Sites that differ, and what algorithms do about it
#
# Hospitals see different patients. Here, twenty sites share 1,797 handwritten digits, and most of them have only two or
# three of the ten digits. We look at how much that costs, and which algorithm wins it back.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cloister import Task, compare, simulate
from simulations.partitions import Described, read_partition


class Digits(Task):
    metrics = ["accuracy"]

    def model(self):
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def example(self):
        return torch.rand(10, 64), torch.arange(10)

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)


pixels, labels = load_digits(return_X_y=True)
records, sites = (pixels / 16, labels), 20

# %% [markdown]
# ## Three ways to divide the same records
#
# A partition is named by a text. `iid` deals records out at random; `dirichlet:0.3` gives each site random shares of
# each digit; `shards:2` sorts the records by digit and gives each site two pieces.

# %%
partitions = ["iid", "dirichlet:0.3", "shards:2"]
figure, row = plt.subplots(1, 3, figsize=(11, 2.8), sharey=True, layout="constrained")
for axes, partition in zip(row, partitions, strict=True):
    parts = read_partition(partition).split(Described(labels, {}), sites, seed=0)
    counts = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    base = np.zeros(sites)
    for digit, colour in enumerate(plt.get_cmap("tab10").colors):
        axes.bar(range(1, sites + 1), counts[:, digit], bottom=base, color=colour, width=0.9, label=digit)
        base += counts[:, digit]
    axes.set(title=partition, xlabel="site")
    axes.spines[["top", "right"]].set_visible(False)
row[0].set_ylabel("records")
row[-1].legend(title="digit", ncols=2, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plt.show()

# %% [markdown]
# ## What it costs
#
# The same run on each, first without noise, so that only the records differ. A `seed` repeats the sampling, too.

# %%
plain = {
    "rounds": 20,
    "seed": 1,
    "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 5.0},
    "training": {"epochs_per_round": 2.0, "learning_rate": 0.3},
}
by_partition = {
    partition: simulate(Digits, records, plain, sites=sites, partition=partition) for partition in partitions
}
figure = compare(by_partition, title="FedAvg, 20 sites, no noise")
figure

# %% [markdown]
# ## What algorithms do about it
#
# FedProx keeps each site near the shared model; SCAFFOLD subtracts each site's own drift; FedAdam takes a step size per
# parameter. A strategy is one line of the run.

# %%
strategies = {
    "FedAvg": {"name": "fedavg"},
    "FedProx": {"name": "fedprox", "mu": 0.1},
    "SCAFFOLD": {"name": "scaffold"},
    "FedAdam": {"name": "fedadam", "server_learning_rate": 0.03},
}
by_strategy = {
    name: simulate(Digits, records, plain | {"strategy": strategy}, sites=sites, partition="shards:2")
    for name, strategy in strategies.items()
}
figure = compare(by_strategy, title="shards:2, no noise")
figure

# %% [markdown]
# ## With noise, the order may change
#
# Now the whole run costs each person ε = 8. What corrects drift also carries noise from round to round: what is best
# without privacy need not be best with it. Noise differs from run to run; before you conclude, repeat.

# %%
private = {"rounds": 20, "privacy": {"epsilon": 8.0}, "training": {"epochs_per_round": 2.0, "learning_rate": 0.3}}
with_noise = {
    name: simulate(Digits, records, private | {"strategy": strategy}, sites=sites, partition="shards:2")
    for name, strategy in strategies.items()
}
figure = compare(with_noise, title="shards:2, ε = 8")
figure

# %%
print(f"{'':<10}{'no noise':>10}{'ε = 8':>10}")
for name in strategies:
    print(f"{name:<10}{by_strategy[name].metrics['accuracy']:>10.3f}{with_noise[name].metrics['accuracy']:>10.3f}")

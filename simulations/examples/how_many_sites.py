# %% [markdown]
# # How many sites are needed?
#
# A study is planned, and each further site takes a contract. Does it pay? Here, each site has 30 records: we let more
# and more of them take part, without noise and at ε = 3, and look at what a newcomer adds.

# %%
import matplotlib.pyplot as plt
import numpy as np
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
order = np.random.default_rng(0).permutation(len(labels))
pixels, labels = pixels[order] / 16, labels[order]
test, at_a_site = (pixels[:500], labels[:500]), 30

# %% [markdown]
# ## More and more sites
#
# The test records are the same for all, given by `test`. With `engine="vectorised"`, all sites train together, however
# few they are.

# %%
counts = [2, 4, 8, 16, 32]
runs = {
    "no noise": {
        "rounds": 25,
        "privacy": {"noise_multiplier": 0.0},
        "training": {"learning_rate": 1.0, "epochs_per_round": 4.0},
    },
    "ε = 3": {
        "rounds": 25,
        "privacy": {"epsilon": 3.0},
        "training": {"learning_rate": 1.0, "sample_rate": 1.0, "steps_per_round": 1},
    },
}
results = {
    name: [
        simulate(
            Digits,
            (pixels[500 : 500 + count * at_a_site], labels[500 : 500 + count * at_a_site]),
            run,
            sites=count,
            test=test,
            engine="vectorised",
        )
        for count in counts
    ]
    for name, run in runs.items()
}

# %%
figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for name, played in results.items():
    axes.plot(counts, [result.metrics["accuracy"] for result in played], marker="o", label=name)
axes.set(xscale="log", xlabel="sites of 30 records", ylabel="test accuracy", title="Digits, 25 rounds")
axes.set_xticks(counts, counts)
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Without noise, the curve soon flattens: a model of 650 parameters has seen enough. With noise, every site still helps:
# each adds its own noise, and the noise of a mean of *n* sites falls as 1/√n, whatever else they know. **Privacy makes
# large consortia worth more.**
#
# ## Few rounds that everybody joins, or many that some do?
#
# Sites are not always online. With `participation`, only some are in a round; each then spends less of its ε in the
# same number of rounds.

# %%
records = pixels[500:1460], labels[500:1460]
for participation in (1.0, 0.5, 0.25):
    result = simulate(
        Digits, records, runs["ε = 3"], sites=32, test=test, engine="vectorised", participation=participation
    )
    print(
        f"{participation:>4.0%} of the sites in a round: accuracy {result.metrics['accuracy']:.3f}, "
        f"ε {min(result.epsilons.values()):.2f} to {max(result.epsilons.values()):.2f}, "
        f"{result.rows[-1]['bytes'] / 1e6:.0f} MB sent"
    )

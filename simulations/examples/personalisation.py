# %% [markdown]
# # Personalisation
#
# A shared model serves everybody a little, and nobody best, if sites differ. A site may train it further on its own
# records. Such a model never leaves the site, so its training needs no noise and costs no ε. Is it better than the
# shared one, and than what the site would have learned alone?

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cloister import Task, simulate
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
pixels = (pixels / 16).astype(np.float32)

# %% [markdown]
# ## Sites with their own mixtures of digits
#
# Each of 24 sites keeps half of its records to test on. The mapping names the sites, so nothing is divided again.

# %%
draw = np.random.default_rng(0)
parts = [draw.permutation(part) for part in read_partition("dirichlet:0.3").split(Described(labels, {}), 24, seed=1)]
trained = [part[: len(part) // 2] for part in parts]
tested = [part[len(part) // 2 :] for part in parts]
records = {f"site-{number:02}": (pixels[part], labels[part]) for number, part in enumerate(trained, start=1)}
everywhere = np.concatenate(tested)

run = {
    "rounds": 40,
    "privacy": {"epsilon": 8.0},
    "training": {"learning_rate": 0.5, "sample_rate": 1.0, "steps_per_round": 3},
}
result = simulate(Digits, records, run, test=(pixels[everywhere], labels[everywhere]), engine="vectorised")
result

# %% [markdown]
# ## Train on, at home
#
# What an agent does with `method = "fine-tuning"` in `[personal]` of its `site.toml` after the last round: plain steps
# on its own records. More of them, from an untrained model, show what a site learns alone.


# %%
def trained_on(model, part, steps):
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    inputs, targets = torch.from_numpy(pixels[part]), torch.from_numpy(labels[part])
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()


def accuracy(model, part):
    with torch.no_grad():
        return float((model(torch.from_numpy(pixels[part])).argmax(1).numpy() == labels[part]).mean())


torch.manual_seed(0)
alone = [trained_on(Digits().model(), part, steps=150) for part in trained]
personal = [trained_on(result.model, part, steps=20) for part in trained]
models = {"alone": alone, "shared, ε = 8": [result.model] * len(parts), "personal": personal}
own = {name: [accuracy(model, part) for model, part in zip(kind, tested, strict=True)] for name, kind in models.items()}
others = {name: np.mean([accuracy(model, everywhere) for model in kind]) for name, kind in models.items()}

# %%
figure, axes = plt.subplots(figsize=(11, 3.2), layout="constrained")
for place, (name, values) in enumerate(own.items()):
    axes.bar(np.arange(len(parts)) + (place - 1) * 0.27, values, width=0.27, label=name)
axes.set_xticks(range(len(parts)), range(1, len(parts) + 1))
axes.set(xlabel="site", ylabel="accuracy", title="On the site's own test records")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.45))
plt.show()

# %%
print(f"{'':<16}{'own records':>12}{'records of all sites':>22}")
for name in models:
    print(f"{name:<16}{np.mean(own[name]):>12.3f}{others[name]:>22.3f}")

# %% [markdown]
# A model that a site trains alone is good for the digits that the site has often, and for no others. The shared one
# knows them all, also of sites with few records. The personal one starts from what all have learned and fits its site
# best; away from home, it is worse than the shared one, so an agent keeps both. `cloister bench personal` compares
# methods on more tasks.

# %% [markdown]
# # Personalisation
#
# A shared model serves everybody a little, and nobody best, if sites differ. A site may train it further on its own
# records. Such a model never leaves the site, so its training needs no noise and costs no ε. Is it better than the
# shared one, and than what the site would have learned alone?

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cloister import Personal, Task, simulate


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
# Half of each site's records are held out, to test on. `personal` says what a site's `site.toml` says under
# `[personal]`: fine-tuning trains the last shared model further; Ditto keeps a model from round to round and pulls it
# to the shared one.

# %%
run = {
    "rounds": 40,
    "privacy": {"epsilon": 8.0},
    "training": {"learning_rate": 0.5, "sample_rate": 1.0, "steps_per_round": 3},
}
sites = {"sites": 24, "partition": "dirichlet:0.3", "seed": 1, "test": 0.5, "engine": "vectorised"}
tuning = Personal("fine-tuning", learning_rate=0.3, epochs=20)
tuned = simulate(Digits, (pixels, labels), run, personal=tuning, **sites)
ditto = simulate(Digits, (pixels, labels), run, personal=Personal("ditto", learning_rate=0.3, epochs=2), **sites)
tuned.personal_metrics

# %% [markdown]
# One shared round that changes next to nothing, and then many steps at home: what a site learns alone.

# %%
still = run | {"rounds": 1, "training": {"learning_rate": 1e-9, "sample_rate": 1.0, "steps_per_round": 1}}
lonely = Personal("fine-tuning", learning_rate=0.3, epochs=150)
alone = simulate(Digits, (pixels, labels), still, personal=lonely, **sites)

# %%
results = {"alone": (alone, "personal"), "shared, ε = 8": (tuned, "shared")}
results |= {"fine-tuning": (tuned, "personal"), "ditto": (ditto, "personal")}
figure, axes = plt.subplots(figsize=(11, 3.2), layout="constrained")
for place, (name, (result, kind)) in enumerate(results.items()):
    values = [worth[kind]["accuracy"] for worth in result.personal.values()]
    axes.bar(np.arange(len(values)) + (place - 1.5) * 0.2, values, width=0.2, label=name)
axes.set_xticks(range(24), range(1, 25))
axes.set(xlabel="site", ylabel="accuracy", title="On the site's own test records")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.45))
plt.show()

# %% [markdown]
# `site_models` has each site's own model. Away from home, on digits of all sites, it is worth less than the shared one:


# %%
def accuracy(model):
    with torch.no_grad():
        return float((model(torch.from_numpy(pixels)).argmax(1).numpy() == labels).mean())


print(f"{'':<16}{'own records':>12}{'digits of all sites':>21}")
for name, (result, kind) in results.items():
    models = result.site_models.values() if kind == "personal" else [result.model]
    everywhere = np.mean([accuracy(model) for model in models])
    print(f"{name:<16}{result.personal_metrics[kind]['accuracy']:>12.3f}{everywhere:>21.3f}")

# %% [markdown]
# A model that a site trains alone is good for the digits that the site has often, and for no others. The shared one
# knows them all, also of sites with few records. Fine-tuning starts from what all have learned, and fits sites best on
# average, though not every site; Ditto, which is pulled to a model with noise in every round, does no better here than
# a site alone. Away from home all of them are worse than the shared one, so an agent keeps both. `cloister bench
# personal` compares methods on more data.

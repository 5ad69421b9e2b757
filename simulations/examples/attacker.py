# %% [markdown]
# # What an attacker sees
#
# Two attacks, on the same digits: one on what a site sends, one on the model that comes out. They are strong enough to
# show a danger, and they are only attacks: that one fails is no proof. The proof is the ε; `cloister audit privacy`
# tries to refute it at a site.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from cloister import Task, simulate
from cloister.audit.gradient_inversion import attacks

# %% [markdown]
# ## An update betrays a record
#
# In softmax regression, the gradient of a weight is the input times the gradient of a bias. Who sees the update of a
# site divides one by the other, and has the record: no search, no training. The same attack on an update with DP-SGD
# finds noise, and on what Cloister's server receives, less: a ciphertext.

# %%
with TemporaryDirectory() as folder:
    truth, found = attacks(Path(folder), row=7, batch=4, epsilon=8.0)
figure, row = plt.subplots(1, 1 + len(found), figsize=(11, 2.9), layout="constrained")
panels = [("the record", truth, "")] + [
    (attack.name, attack.image, f"correlation {attack.correlation:z.2f}") for attack in found
]
for axes, (name, image, caption) in zip(row, panels, strict=True):
    axes.imshow(image.reshape(8, 8), cmap="gray_r")
    axes.set(xticks=[], yticks=[], xlabel=caption)
    axes.set_title(name, fontsize="medium")
plt.show()

# %% [markdown]
# ## A model betrays who was in it
#
# Encryption ends where the model is used. A model that has learned its records by heart is surer of them than of
# others, so an attacker who has a person's record guesses from the loss whether it was among them (Yeom et al., 2018).
# To make it easy, there are only 120 records, at four sites, and a model that is large for them.


# %%
class Digits(Task):
    metrics = ["accuracy"]

    def model(self):
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def example(self):
        return torch.rand(10, 64), torch.arange(10)

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)


pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(5).permutation(len(labels))
pixels, labels = (pixels[order] / 16).astype(np.float32), labels[order]
labels[:120][::5] = (labels[:120][::5] + 1) % 10  # every fifth record is odd, as rare diseases are
labels[120:240][::5] = (labels[120:240][::5] + 1) % 10
members, strangers = (pixels[:120], labels[:120]), (pixels[120:240], labels[120:240])

runs = {
    "no noise": {
        "rounds": 30,
        "privacy": {"noise_multiplier": 0.0, "max_grad_norm": 5.0},
        "training": {"learning_rate": 0.5, "sample_rate": 0.5, "steps_per_round": 20},
    },
    "ε = 8": {
        "rounds": 30,
        "privacy": {"epsilon": 8.0},
        "training": {"learning_rate": 0.2, "sample_rate": 1.0, "steps_per_round": 1},
    },
}
results = {
    name: simulate(Digits, members, run, sites=4, test=strangers, engine="vectorised") for name, run in runs.items()
}


def losses(model, records):
    with torch.no_grad():
        outputs = model(torch.from_numpy(records[0]))
        return functional.cross_entropy(outputs, torch.from_numpy(records[1]), reduction="none").numpy()


# %% [markdown]
# The attacker says "member" if the loss is below a threshold. Each threshold catches some members, and accuses some
# strangers: a curve. On the diagonal, the guess is worth nothing. Differential privacy bounds it: at each point,
# the rate of members is at most e^ε times the rate of strangers, plus δ.

# %%
figure, axes = plt.subplots(figsize=(4.2, 3.8), layout="constrained")
for name, result in results.items():
    inside, outside = losses(result.model, members), losses(result.model, strangers)
    thresholds = np.sort(np.concatenate([inside, outside]))
    caught = (inside[:, None] <= thresholds).mean(0)
    accused = (outside[:, None] <= thresholds).mean(0)
    area = np.trapezoid(np.r_[0, caught], np.r_[0, accused])
    axes.plot(np.r_[0, accused], np.r_[0, caught], label=f"{name}: area {area:.2f}")
axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="a guess: area 0.50")
axes.set(xlabel="strangers accused", ylabel="members caught", title="Who was in the training records?", aspect="equal")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize="small", loc="lower right")
plt.show()

# %%
for name, result in results.items():
    print(
        f"{name:<9} accuracy {result.metrics['accuracy']:.2f} on strangers; mean loss of members "
        f"{losses(result.model, members).mean():.2f}, of strangers {losses(result.model, strangers).mean():.2f}"
    )

# %% [markdown]
# The price shows, too: 120 records are few, so at this ε the model has learned little. With more records, it would be
# better, and betray as little.
#
# Stronger attacks than this one are known. `cloister audit privacy SITE` plants records made for it and shows a lower
# bound on ε; `cloister bench adversary` plays a malicious server and lying members against the protocol.

"""The site's half of federated averaging (McMahan et al., 2017): what a decrypted mean does to the model.

Pure numpy and the same operations in the same order at every site, so that all arrive at the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.update import Model

if TYPE_CHECKING:
    from privacy.update import Update


def average(model: Model, mean: Update) -> Model:
    """Return the model plus the mean update."""
    return Model(np.add(model.vector, mean.vector, dtype=np.float32), model.layout)

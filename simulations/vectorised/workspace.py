"""Memory in which one thread computes, kept from group to group of sites.

The system takes longer to provide new memory than a processor takes to fill it.
"""

from __future__ import annotations

import torch


class Workspace:
    """Matrices of a row for each site, by name; what is in one stays until the same name is asked for again."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self._kept: dict[str, torch.Tensor] = {}

    def rows(self, name: str, sites: int) -> torch.Tensor:
        """Return `(sites, parameters)` numbers of any value, float32, on the device."""
        return self._rows(name, sites, self._device)

    def rows_here(self, name: str, sites: int) -> torch.Tensor:
        """Return `(sites, parameters)` numbers of any value, float32, on the CPU."""
        return self._rows(name, sites, torch.device("cpu"))

    def _rows(self, name: str, sites: int, device: torch.device) -> torch.Tensor:
        kept = self._kept.get(name)
        if kept is None or len(kept) < sites:
            kept = self._kept[name] = torch.empty((sites, self._size), device=device)
        return kept[:sites]

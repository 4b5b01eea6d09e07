"""A model without weights that keeps a GPU busy for a set time each step, as FCN3 does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.sleeping_models import Journal
from deployments.synthetic.fcn3 import SyntheticFCN3

SIZE = 8192
"""Rows of the matrices: 1.1e12 operations per product."""
SIZE_ON_CPU = 512
TRIALS = 5


class ComputingFCN3(SyntheticFCN3):
    """Multiplies matrices for about a set time in every step; its state is on the GPU.

    Parameters
    ----------
    device : str
        Device of torch.
    step_s : float
        Seconds; the number of products in that time is measured when the model is loaded.
    journal : str
        File that receives a line for each step.
    n_lat, n_lon : int
    """

    numpy_native = False

    def __init__(self, device: str, step_s: float, journal: str, n_lat: int, n_lon: int) -> None:
        super().__init__(device, n_lat=n_lat, n_lon=n_lon)
        import torch

        size = SIZE if device.startswith("cuda") else SIZE_ON_CPU
        self._journal = Journal(journal, "FCN3")
        self._matrix = torch.randn(size, size, device=device)
        self._product = torch.empty_like(self._matrix)
        self._compute(TRIALS)
        started = time.perf_counter()
        self._compute(TRIALS)
        self._products = max(round(step_s * TRIALS / (time.perf_counter() - started)), 1)

    def parameters(self) -> Iterator[Any]:
        """Yield a tensor on the device of the state."""
        yield self._matrix

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        """Step through time, overwriting the state as FCN3 does."""
        coords = coords.copy()
        yield x, coords
        while True:
            with self._journal.step(0.0):
                self._compute(self._products)
                x.mul_(1.0001)
                coords = self.output_coords(coords)
            yield x, coords

    def _compute(self, products: int) -> None:
        import torch

        for _ in range(products):
            torch.matmul(self._matrix, self._matrix, out=self._product)
        if self._matrix.is_cuda:
            torch.cuda.synchronize()


def load_fcn3(device: str, *, step_s: float, journal: str, grid: dict[str, int]) -> Any:
    """Return the model, for ``models.fcn3.loader``."""
    return ComputingFCN3(device, step_s, journal, **grid)

"""Memory of the host for fields on their way from a model, used again and again.

Fresh memory costs a page fault for every 4 KiB, which takes longer than the copy: eight variables
of 721 x 1440 take 16 ms, and 4 to 6 where the memory is there already.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Arrays that are lent and given back; may be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shape: tuple[int, ...] = ()
        self._free: list[NDArray[np.float32]] = []

    def fields(self, given: Any, chosen: Sequence[int]) -> NDArray[np.float32]:
        """Copy chosen variables, shape (variable, lat, lon), wherever they are."""
        # What comes from a GPU comes faster into memory that is pinned.
        memory = self._take((len(chosen), *given.shape[1:]), getattr(given, "is_cuda", False))
        for place, index in enumerate(chosen):
            if isinstance(given, np.ndarray):
                np.copyto(memory[place], given[index], casting="same_kind")
            else:
                import torch

                torch.from_numpy(memory[place]).copy_(given[index].detach())
        return memory

    def give_back(self, memory: NDArray[np.float32]) -> None:
        """Let an array be used again; nobody may look at it any more."""
        with self._lock:
            # Of a plan with another number of variables it would lie there for nothing.
            if memory.shape == self._shape:
                self._free.append(memory)

    def _take(self, shape: tuple[int, ...], pinned: bool) -> NDArray[np.float32]:
        with self._lock:
            if shape != self._shape:
                self._shape, self._free = shape, []
            if self._free:
                return self._free.pop()
        if not pinned:
            return np.empty(shape, np.float32)
        import torch

        memory: NDArray[np.float32] = torch.empty(shape, pin_memory=True).numpy()
        return memory

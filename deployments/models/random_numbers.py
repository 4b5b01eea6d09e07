"""Random numbers of one member, whatever else draws in the same process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray


def seed_own_generators(component: Any, seed: int) -> None:
    """Seed the generators that a perturbation keeps for itself, such as Earth2Studio's Gaussian."""
    # Also one that its options have: all members would have it.
    if hasattr(component, "seed"):
        component.seed = seed
    for name, value in list(vars(component).items()):
        if hasattr(value, "manual_seed"):
            value.manual_seed(seed)
        elif isinstance(value, np.random.Generator):
            setattr(component, name, np.random.default_rng(seed))


class RandomNumbers:
    """The global generators of Python, NumPy and torch, as one member has left them.

    Models and perturbations draw from the global generators, which anything else in the process
    may use between two steps. In a block of `own` they continue the member's sequences; after it
    they are as before.

    Parameters
    ----------
    seed : int
    uses_torch : bool
        False for models that compute without torch, which is not imported then.
    devices : sequence of torch.device
        CUDA devices whose generators are the member's, too.
    """

    def __init__(self, seed: int, *, uses_torch: bool = True, devices: Sequence[Any] = ()) -> None:
        self._seed = seed
        self._uses_torch = uses_torch
        self._devices = devices
        self._kept: dict[str, Any] | None = None

    @contextmanager
    def own(self) -> Iterator[None]:
        """Let the generators belong to the member in the block."""
        outside = self._read()
        if self._kept is None:
            self._seed_all()
        else:
            self._write(self._kept)
        try:
            yield
        finally:
            self._kept = self._read()
            self._write(outside)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the member's state, for a checkpoint."""
        if self._kept is None:
            return {}
        version, numbers, gauss = self._kept["python"]
        arrays = {
            "random.python": np.array([version, *numbers], np.int64),
            "random.python_gauss": np.array([] if gauss is None else [gauss]),
            "random.numpy": self._kept["numpy"][1],
            "random.numpy_position": np.array(self._kept["numpy"][2:4], np.int64),
            "random.numpy_gauss": np.array(self._kept["numpy"][4:]),
        }
        for name in self._kept.keys() - {"python", "numpy"}:
            arrays[f"random.{name}"] = self._kept[name].numpy().copy()
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a state that `state` returned; KeyError if a part is missing."""
        gauss = arrays["random.python_gauss"]
        version, *numbers = (int(number) for number in arrays["random.python"])
        position, has_gauss = (int(number) for number in arrays["random.numpy_position"])
        kept: dict[str, Any] = {
            "python": (version, tuple(numbers), float(gauss[0]) if gauss.size else None),
            "numpy": (
                "MT19937",
                arrays["random.numpy"],
                position,
                has_gauss,
                float(arrays["random.numpy_gauss"][0]),
            ),
        }
        if self._uses_torch:
            import torch

            names = ["torch", *(f"cuda{number}" for number in range(len(self._devices)))]
            for name in names:
                kept[name] = torch.from_numpy(np.array(arrays[f"random.{name}"]))
        self._kept = kept

    def _seed_all(self) -> None:
        random.seed(self._seed)
        np.random.seed(self._seed)
        if self._uses_torch:
            import torch

            # Also seeds the generators of all CUDA devices.
            torch.manual_seed(self._seed)

    def _read(self) -> dict[str, Any]:
        state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
        if self._uses_torch:
            import torch

            state["torch"] = torch.get_rng_state()
            for number, device in enumerate(self._devices):
                state[f"cuda{number}"] = torch.cuda.get_rng_state(device)
        return state

    def _write(self, state: Mapping[str, Any]) -> None:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        if self._uses_torch:
            import torch

            torch.set_rng_state(state["torch"])
            for number, device in enumerate(self._devices):
                torch.cuda.set_rng_state(state[f"cuda{number}"], device)

"""State of a model in the middle of a member, from which another process can go on.

A checkpoint holds all that the next step depends on, so what is computed behind it is bit for bit
what an undisturbed run gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_HEAD, _STATE, _INTERNAL = "head", "state", "internal."


class UnusableCheckpoint(Exception):
    """The model does not go on from a checkpoint that it seemed to have made."""


@dataclass(frozen=True)
class Checkpoint:
    """A member up to one of its steps."""

    step: int
    """Time index of `state`."""
    origin: str
    """Which model computed it, and of what: another one must not go on with it."""
    state: NDArray[np.float32]
    """Shape (variable, lat, lon), all of the model's variables."""
    internal: Arrays
    """What else the model's next step depends on, such as its noise."""

    @property
    def nbytes(self) -> int:
        """Size of its arrays."""
        return self.state.nbytes + sum(each.nbytes for each in self.internal.values())

    def write(self, file: IO[bytes]) -> None:
        """Write it; every array goes with a CRC-32."""
        head = {"step": self.step, "origin": self.origin, "internal": sorted(self.internal)}
        arrays: dict[str, Any] = {_HEAD: np.array(json.dumps(head)), _STATE: self.state}
        arrays |= {f"{_INTERNAL}{name}": each for name, each in self.internal.items()}
        np.savez(file, **arrays)

    @classmethod
    def read(cls, step: int, file: IO[bytes]) -> Checkpoint:
        """Read what `write` wrote.

        Raises
        ------
        ValueError
            If it is damaged, or of another step.
        """
        try:
            with np.load(file) as arrays:
                # The CRC-32 of an array is not that of its name, without which it would be missed.
                head = json.loads(str(arrays[_HEAD]))
                if head["step"] != step:
                    raise ValueError(f"it is that of step {head['step']}")
                internal = {name: arrays[f"{_INTERNAL}{name}"] for name in head["internal"]}
                return cls(step, head["origin"], arrays[_STATE], internal)
        except Exception as error:
            # A few bytes of an archive make zipfile raise almost anything.
            raise ValueError(f"the checkpoint at step {step} is damaged: {error}") from error


def internal_state(model: Any) -> dict[str, NDArray[Any]] | None:
    """Give what a model's next step depends on beside the fields that it gave last.

    Returns
    -------
    dict or None
        None if the model is none whose state can be had: Earth2Studio's FCN3 around makani's
        network, or one that has `internal_state` and `set_internal_state` of its own.
    """
    if hasattr(model, "internal_state"):
        return dict(model.internal_state())
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        return None
    # makani: the noise is a process in time, which draws from generators that go on.
    generators = dict(zip(("cpu", "gpu"), preprocessor.get_internal_state(), strict=True))
    found = {"noise": model._get_internal_state(0, 0), **generators}
    return {name: each.cpu().numpy() for name, each in found.items() if each is not None}


def set_internal_state(model: Any, kept: Arrays) -> None:
    """Let a model's running iterator go on as if it had given the fields that it was begun with.

    Raises
    ------
    ValueError
        If the model is none whose state can be had.
    """
    if hasattr(model, "internal_state"):
        model.set_internal_state(kept)
        return
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        raise ValueError(f"{model} cannot go on in the middle")
    import torch

    found = {name: torch.from_numpy(np.array(each)) for name, each in kept.items()}
    preprocessor.set_internal_state((found.get("cpu"), found.get("gpu")))
    if "noise" in found:
        # Copied into the network's buffer, wherever that is, and from there into the iterator.
        preprocessor.set_internal_state(found["noise"])
        model._set_internal_state(0, 0)


def can_go_on(model: Any) -> bool:
    """Say whether a model's state can be kept, and set again."""
    return hasattr(model, "internal_state") or _preprocessor(model) is not None


def _preprocessor(model: Any) -> Any:
    """Give what owns the noise of Earth2Studio's FCN3; None of any other model."""
    if not hasattr(model, "_set_internal_state"):
        return None
    network = getattr(getattr(model, "model", None), "model", None)
    preprocessor = getattr(network, "preprocessor", None)
    return preprocessor if hasattr(preprocessor, "get_internal_state") else None

"""The state of a model between two time steps of a member, from which another process can continue.

A checkpoint holds everything that the next time step depends on: a run that continues from it
computes bit for bit the same as an uninterrupted one.
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


@dataclass(frozen=True)
class Checkpoint:
    """A member up to one of its time steps."""

    step: int
    """Time index of `state`."""
    origin: str
    """Identifies the model and the member; a checkpoint of another origin must not be used."""
    state: NDArray[np.float32]
    """Shape (variable, lat, lon), all variables of the model."""
    internal: Arrays
    """What else the model's next time step depends on, such as its noise."""

    @property
    def nbytes(self) -> int:
        """Size of the arrays, bytes."""
        return self.state.nbytes + sum(array.nbytes for array in self.internal.values())

    def write(self, file: IO[bytes]) -> None:
        """Write an uncompressed npz archive, which has a CRC-32 of every array."""
        head = {"step": self.step, "origin": self.origin, "internal": sorted(self.internal)}
        arrays: dict[str, Any] = {_HEAD: np.array(json.dumps(head)), _STATE: self.state}
        arrays |= {f"{_INTERNAL}{name}": array for name, array in self.internal.items()}
        np.savez(file, **arrays)

    @classmethod
    def read(cls, step: int, file: IO[bytes]) -> Checkpoint:
        """Read an archive that `write` made; ValueError if it is damaged or of another step."""
        try:
            with np.load(file) as arrays:
                # The CRC-32 of an array does not cover its name: the head lists the arrays.
                head = json.loads(str(arrays[_HEAD]))
                if head["step"] != step:
                    raise ValueError(f"it is that of step {head['step']}")
                internal = {name: arrays[f"{_INTERNAL}{name}"] for name in head["internal"]}
                return cls(step, head["origin"], arrays[_STATE], internal)
        except Exception as error:
            # zipfile raises almost any class for a few damaged bytes.
            raise ValueError(f"the checkpoint at step {step} is damaged: {error}") from error

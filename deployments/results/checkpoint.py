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

"""Arguments of an IOBackend's methods, in every form that classes pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Coordinates = Mapping[str, NDArray[Any]]


def as_list(given: Any) -> list[Any]:
    """Return a list of names or tensors; a single one becomes a list of one."""
    if isinstance(given, (list, tuple)) or (
        isinstance(given, np.ndarray) and given.dtype.kind in "UO"
    ):
        return [str(each) if isinstance(each, str) else each for each in given]
    return [given]


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values, from any device, as a NumPy array."""
    if isinstance(tensor, (np.ndarray, np.generic)):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16.
    values: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values


def copy_to(memory: NDArray[Any], tensor: Any) -> None:
    """Copy a tensor from any device into memory of the host."""
    if isinstance(tensor, np.ndarray):
        np.copyto(memory, tensor)
        return
    import torch

    # Directly from the device, without an intermediate copy.
    torch.from_numpy(memory).copy_(tensor)


def one_dimensional(
    coords: Coordinates,
) -> tuple[dict[str, NDArray[Any]], Mapping[str, Sequence[str]]]:
    """Return coordinates of one dimension each, and the dimensions of curvilinear ones by name."""
    from earth2studio.utils.coords import convert_multidim_to_singledim

    dims, curvilinear = convert_multidim_to_singledim(coords)
    return dict(dims), curvilinear


def positions_of(coords: Coordinates, known: Coordinates) -> list[NDArray[np.intp]]:
    """Return the positions of `coords` among the known values of each dimension.

    Raises
    ------
    ValueError
        If there is no such dimension or value, a value occurs more than once, or the order is not
        that of the known values.
    """
    return [_positions(dim, values, known) for dim, values in coords.items()]


def _positions(dim: str, values: NDArray[Any], coords: Coordinates) -> NDArray[np.intp]:
    if dim not in coords:
        raise ValueError(f"coordinate {dim} was not added; there are {', '.join(coords)}")
    known, values = coords[dim], np.atleast_1d(values)
    if np.array_equal(known, values):
        return np.arange(len(known))
    unknown = values[~np.isin(values, known)]
    if unknown.size:
        raise ValueError(f"coordinate {dim} has no value {unknown[0]}")
    # As in Earth2Studio's backends, which select values in the order of the coordinate and ignore
    # the order of the arguments. What that would store elsewhere, or twice, is refused.
    positions = np.flatnonzero(np.isin(known, values))
    for each in (values, known[positions]):
        found, counts = np.unique(each, return_counts=True)
        if (counts > 1).any():
            repeated = found[counts > 1][0]
            raise ValueError(f"coordinate {dim} has the value {repeated} more than once")
    if not np.array_equal(known[positions], values):
        raise ValueError(f"the values of coordinate {dim} must be in the order of the array's")
    return positions

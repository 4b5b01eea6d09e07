"""Reads and restores the state of a model that its output fields do not contain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Arrays


class UnusableCheckpoint(Exception):
    """A model cannot continue from a checkpoint."""


def supports_checkpoints(model: Any) -> bool:
    """Return whether the internal state of a model can be read and restored."""
    return hasattr(model, "internal_state") or _preprocessor(model) is not None


def internal_state(model: Any) -> dict[str, NDArray[Any]] | None:
    """Return what the next step of a model depends on besides its latest fields.

    None if `supports_checkpoints` is false. It is true of Earth2Studio's FCN3 around makani's
    network, and of models with methods `internal_state` and `set_internal_state`.
    """
    if hasattr(model, "internal_state"):
        return dict(model.internal_state())
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        return None
    # makani's noise is a process in time with its own generators.
    generators = dict(zip(("cpu", "gpu"), preprocessor.get_internal_state(), strict=True))
    arrays = {"noise": model._get_internal_state(0, 0), **generators}
    return {name: array.cpu().numpy() for name, array in arrays.items() if array is not None}


def set_internal_state(model: Any, internal: Arrays) -> None:
    """Restore the internal state of a model whose iterator has just yielded its first fields.

    Raises `ValueError` if `supports_checkpoints` is false.
    """
    if hasattr(model, "internal_state"):
        model.set_internal_state(internal)
        return
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        raise ValueError(f"the state of {model} cannot be restored")
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in internal.items()}
    preprocessor.set_internal_state((tensors.get("cpu"), tensors.get("gpu")))
    if "noise" in tensors:
        # This copies into the network's buffer on its device; the next call, into the iterator.
        preprocessor.set_internal_state(tensors["noise"])
        model._set_internal_state(0, 0)


def _preprocessor(model: Any) -> Any:
    """Return the owner of the noise in Earth2Studio's FCN3; None for any other model."""
    if not hasattr(model, "_set_internal_state"):
        return None
    network = getattr(getattr(model, "model", None), "model", None)
    preprocessor = getattr(network, "preprocessor", None)
    return preprocessor if hasattr(preprocessor, "get_internal_state") else None

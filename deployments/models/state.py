"""Reads and restores the state of a model that its output fields do not contain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.models.known_models import RESUMES_FROM_OUTPUT, path_of
from deployments.models.random_numbers import RandomNumbers
from deployments.results.checkpoint import Arrays


class UnusableCheckpoint(Exception):
    """A model cannot continue from a checkpoint."""


def supports_checkpoints(model: Any) -> bool:
    """Return whether a member of a model can be resumed after one of its steps."""
    return (
        hasattr(model, "internal_state")
        or _preprocessor(model) is not None
        or resumes_from_output(model)
    )


def resumes_from_output(model: Any) -> bool:
    """Return whether the next step of a model depends on its latest output and history alone.

    A model that is not Earth2Studio's says so with an attribute of this name.
    """
    known = path_of(model) in RESUMES_FROM_OUTPUT
    return bool(getattr(model, "resumes_from_output", known))


def internal_state(model: Any, numbers: RandomNumbers) -> dict[str, NDArray[Any]] | None:
    """Return what the next step of a model depends on besides its latest fields.

    None if `supports_checkpoints` is false. It is true of Earth2Studio's FCN3 around makani's
    network, of models with methods `internal_state` and `set_internal_state`, and of those that
    resume from their output.
    """
    if hasattr(model, "internal_state"):
        return dict(model.internal_state())
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        return numbers.state() if resumes_from_output(model) else None
    # makani's noise is a process in time with its own generators.
    generators = dict(zip(("cpu", "gpu"), preprocessor.get_internal_state(), strict=True))
    arrays = {"noise": model._get_internal_state(0, 0), **generators}
    return {name: array.cpu().numpy() for name, array in arrays.items() if array is not None}


def set_internal_state(model: Any, internal: Arrays, numbers: RandomNumbers) -> None:
    """Restore the internal state of a model whose iterator has just yielded its first fields.

    Raises `ValueError` if `supports_checkpoints` is false.
    """
    if hasattr(model, "internal_state"):
        model.set_internal_state(internal)
        return
    preprocessor = _preprocessor(model)
    if preprocessor is None:
        if not resumes_from_output(model):
            raise ValueError(f"the state of {model} cannot be restored")
        numbers.restore(internal)
        return
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

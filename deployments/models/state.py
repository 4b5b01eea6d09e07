"""The part of a model's state that is not in its output fields: read it, and restore it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.results.checkpoint import Arrays


class UnusableCheckpoint(Exception):
    """A model cannot continue from a checkpoint."""


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

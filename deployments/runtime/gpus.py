"""Whether a process has a GPU, whether that still works, and how to hide others."""

from __future__ import annotations

import os
import sys

import ray


def hide_gpus() -> None:
    """Hide every GPU from this process; call it before anything imports torch.

    Ray leaves CUDA_VISIBLE_DEVICES alone for ``num_gpus=0``, so a CPU replica on a GPU node would
    see all GPUs. A variable set in ``ray_actor_options`` is lost when YAML overrides those.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def has_gpu() -> bool:
    """Return whether Ray assigned a GPU to this replica."""
    return ray.is_initialized() and bool(ray.get_gpu_ids())


def gpu_failure() -> str | None:
    """Return the error that the GPU of this process keeps, or None.

    After an illegal memory access or a hardware error, every further call to CUDA in the process
    fails. Exhausted memory is no such error.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return None

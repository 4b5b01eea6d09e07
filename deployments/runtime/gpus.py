"""Whether a process has a GPU, and how to hide GPUs that it must not use."""

from __future__ import annotations

import os

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

"""What a replica does first: hide the GPUs that it did not ask for."""

from __future__ import annotations

import os

import ray


def hide_gpus() -> None:
    """Make every GPU invisible to this process.

    Ray leaves CUDA_VISIBLE_DEVICES alone for ``num_gpus=0``, so a CPU replica on a GPU node would
    see every GPU, and a setting in ``ray_actor_options`` is lost when YAML overrides those. CPU
    deployments call this before anything imports torch.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def has_gpu() -> bool:
    """Say whether Ray gave this replica a GPU."""
    return ray.is_initialized() and bool(ray.get_gpu_ids())

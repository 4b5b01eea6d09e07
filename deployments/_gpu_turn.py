"""Turns on a GPU that cannot hold two models at once.

A model computes while it holds the GPU's lock; the others wait in the host's memory. The lock goes
with the process that holds it, so that one which dies keeps nobody from the GPU.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

POLL_S = 0.05


class GpuTurn:
    """The lock on the GPUs that Ray gave this replica; used in the model's thread.

    Parameters
    ----------
    folder : Path, optional
        Of the locks, may be seen by other nodes; None where no turns are taken.
    device : str
        Where models compute.
    """

    def __init__(self, folder: Path | None, device: str) -> None:
        self._device = device
        ids = ray.get_gpu_ids() if ray.is_initialized() else []
        gpus = "-".join(sorted(str(gpu) for gpu in ids)) or "none"
        self._path = folder and folder / f"{socket.gethostname()}-{gpus}.lock"

    @contextmanager
    def loading(self) -> Iterator[Callable[[Any], None]]:
        """Keep the turn while a model is loaded; gives what puts it aside at the end."""
        with self._taken(lambda: None):
            yield self._put_aside

    @contextmanager
    def computing(self, model: Any, check: Callable[[], None]) -> Iterator[None]:
        """Wait for the turn, and keep it with the model on the GPU.

        Parameters
        ----------
        check : callable
            Called while others have their turn; raises if the job shall stop.
        """
        with self._taken(check):
            if self._path is not None:
                _move(model, self._device)
            try:
                yield
            finally:
                self._put_aside(model)

    def _put_aside(self, model: Any) -> None:
        if self._path is not None:
            _move(model, "cpu")

    @contextmanager
    def _taken(self, check: Callable[[], None]) -> Iterator[None]:
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _locked(lock):
                check()
                time.sleep(POLL_S)
            yield
        finally:
            os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _move(model: Any, device: str) -> None:
    """Bring a model's weights to a device, and let go of what is left on the GPU."""
    if getattr(model, "numpy_native", False):
        return
    import torch

    model.to(device)
    if device == "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()

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


class GpuLock:
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
    def loading(self) -> Iterator[Callable[..., None]]:
        """Keep the turn while models are loaded; gives what puts them aside at the end."""
        with self._taken(lambda: None):
            try:
                yield self._put_aside
            finally:
                # What could not be loaded whole is not put aside.
                self._put_aside()

    @contextmanager
    def computing(self, *models: Any, check: Callable[[], None]) -> Iterator[None]:
        """Wait for the turn, and keep it with the models on the GPU.

        Parameters
        ----------
        check : callable
            Called while others have their turn; raises if the job shall stop.
        """
        with self._taken(check):
            try:
                if self._path is not None:
                    for model in models:
                        _move(model, self._device)
                yield
            finally:
                self._put_aside(*models)

    def _put_aside(self, *models: Any) -> None:
        if self._path is not None:
            for model in models:
                _move(model, "cpu")
            _let_go(self._device)

    @contextmanager
    def _taken(self, check: Callable[[], None]) -> Iterator[None]:
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        mine = False
        try:
            while not (mine := _locked(lock)):
                check()
                time.sleep(POLL_S)
            yield
        finally:
            os.close(lock)
            if mine:
                # Or whoever has just had it would have it again before the others look.
                time.sleep(2 * POLL_S)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _move(model: Any, device: str) -> None:
    """Bring a model's weights to a device."""
    if not getattr(model, "numpy_native", False):
        model.to(device)


def _let_go(device: str) -> None:
    """Give back memory of a GPU that nothing uses any more."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()

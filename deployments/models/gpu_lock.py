"""When models are on a GPU that several share.

Models that do not fit together take turns: one computes while its replica holds a lock, the others
wait in the host's memory. The operating system releases the lock when the process that holds it
dies. Models that fit, but compute rarely, leave the GPU after some time without work.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

POLL_S = 0.05


class GpuLock:
    """The lock on the GPUs that Ray assigned to this replica; used in the model's thread.

    Parameters
    ----------
    folder : Path, optional
        Folder of the lock files, which other nodes may share; None where models share no GPU.
    device : str
        Device on which models compute.
    idle_unload_s : float, optional
        Seconds without work after which models leave the GPU; they are loaded into the host's
        memory then. None keeps them there.
    clock : callable, optional
        Returns seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        device: str,
        idle_unload_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._idle_unload_s = idle_unload_s
        self._clock = clock
        self._used_at: float | None = None
        """When models that may leave the GPU last computed; None while they are not there."""
        ids = ray.get_gpu_ids() if ray.is_initialized() else []
        gpus = "-".join(sorted(str(gpu) for gpu in ids)) or "none"
        self._path = folder and folder / f"{socket.gethostname()}-{gpus}.lock"

    @property
    def load_device(self) -> str:
        """The device on which to load models."""
        return self._device if self._idle_unload_s is None else "cpu"

    @property
    def is_idle(self) -> bool:
        """Whether models on the GPU have been without work for too long."""
        if self._idle_unload_s is None or self._used_at is None:
            return False
        return self._clock() - self._used_at >= self._idle_unload_s

    def unload_idle(self, *models: Any) -> None:
        """Move models off the GPU if they are idle; called in their thread while no job runs."""
        if self.is_idle:
            self._used_at = None
            self._to_host(*models)

    @contextmanager
    def loading(self) -> Iterator[Callable[..., None]]:
        """Hold the lock while models are loaded; yields a function that offloads models."""
        with self._held(lambda: None):
            try:
                yield self._offload
            finally:
                # A model whose loading failed leaves memory behind.
                self._offload()

    @contextmanager
    def computing(self, *models: Any, check: Callable[[], None]) -> Iterator[None]:
        """Wait for the lock, and hold it with the models on the GPU.

        `check` is called while the lock is held elsewhere; it raises to stop the wait.
        """
        with self._held(check):
            try:
                if self._path is not None or self._idle_unload_s is not None:
                    for model in models:
                        _move(model, self._device)
                yield
            finally:
                self._offload(*models)
                if self._path is None and self._idle_unload_s is not None:
                    self._used_at = self._clock()

    def _offload(self, *models: Any) -> None:
        if self._path is not None:
            self._to_host(*models)

    def _to_host(self, *models: Any) -> None:
        for model in models:
            _move(model, "cpu")
        if self._device == "cuda" and "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    @contextmanager
    def _held(self, check: Callable[[], None]) -> Iterator[None]:
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        acquired = False
        try:
            while not (acquired := _try_lock(file)):
                check()
                time.sleep(POLL_S)
            yield
        finally:
            os.close(file)
            if acquired:
                # Lets the others poll first, or this replica would reacquire the lock at once.
                time.sleep(2 * POLL_S)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _move(model: Any, device: str) -> None:
    if hasattr(model, "to") and not getattr(model, "numpy_native", False):
        model.to(device)

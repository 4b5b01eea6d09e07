"""Threads that write arrays behind a model's loop, with bounded memory.

The loop continues while the unwritten bytes fit into a window, and waits otherwise. A slow disk
thus costs memory first and time only after that.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import DTypeLike, NDArray

Item = tuple[Callable[[], object], NDArray[np.uint8]]
"""A write, and the memory that it frees."""

STOP_INTERVAL_S = 0.1


class WriteBehind:
    """Threads that write, and a window of unwritten bytes.

    Parameters
    ----------
    threads : int
    window_bytes : int
        Bytes that may be unwritten. A larger array waits until nothing else is unwritten.
    check : callable
        Called while a caller waits; raises if the work must stop.
    waiting : callable
        Returns a context for the time in which a caller waits.
    """

    def __init__(
        self,
        threads: int,
        window_bytes: int,
        check: Callable[[], None] = lambda: None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._window = window_bytes
        self._check = check
        self._waiting = waiting
        self._changed = threading.Condition()
        self._pending_bytes = 0
        self._pending = 0
        self._failure: BaseException | None = None
        self._abandoned = False
        self._spare: dict[int, list[NDArray[np.uint8]]] = {}
        self._spare_bytes = 0
        self._queues: list[SimpleQueue[Item | None]] = [SimpleQueue() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), name="write-behind", daemon=True)
            for queue in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def put(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        fill: Callable[[NDArray[Any]], object],
        write: Callable[[NDArray[Any]], object],
    ) -> None:
        """Queue an array for writing; it is copied, so the caller may overwrite it.

        Parameters
        ----------
        key : str
            Arrays with the same key are written in the order in which they were queued.
        fill : callable
            Copies the values into its argument; called at once, in this thread.
        write : callable
            Writes that array, in another thread; its memory is reused afterwards.

        Raises
        ------
        Exception
            The error of an earlier write, or what `check` raises.
        RuntimeError
            If the writer is closed.
        """
        memory = self._take(math.prod(shape) * np.dtype(dtype).itemsize)
        try:
            copy = memory.view(dtype).reshape(shape)
            fill(copy)
        except BaseException:
            self._give_back(memory, None)
            raise
        self._queues[crc32(key.encode()) % len(self._queues)].put((lambda: write(copy), memory))

    def flush(self) -> None:
        """Wait until everything is written; raises the error of a write, or as `check` does."""
        with self._changed:
            while self._pending:
                self._wait()
            self._raise_failure()

    def close(self) -> None:
        """End the threads; unwritten arrays are dropped."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        # Released now, since the instance may keep a reference to a run for a long time.
        self._spare.clear()
        self._spare_bytes = 0

    def _take(self, size: int) -> NDArray[np.uint8]:
        """Wait for room in the window and return memory of that size."""
        with self._changed:
            while self._pending and self._pending_bytes + size > self._window:
                self._wait()
            self._raise_failure()
            if self._abandoned:
                raise RuntimeError("the output is closed")
            self._pending += 1
            self._pending_bytes += size
            if spare := self._spare.get(size):
                # Reused, since new memory costs a page fault for every 4 KiB.
                self._spare_bytes -= size
                return spare.pop()
            # Spare memory counts towards the window, too.
            for kept in self._spare.values():
                while kept and self._pending_bytes + self._spare_bytes > self._window:
                    self._spare_bytes -= kept.pop().nbytes
        return np.empty(size, np.uint8)

    def _wait(self) -> None:
        self._raise_failure()
        with self._waiting():
            self._changed.wait(STOP_INTERVAL_S)
        self._check()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self, queue: SimpleQueue[Item | None]) -> None:
        while (item := queue.get()) is not None:
            write, memory = item
            failure: BaseException | None = None
            try:
                if not self._abandoned and self._failure is None:
                    write()
            except Exception as error:
                failure = error
            self._give_back(memory, failure)

    def _give_back(self, memory: NDArray[np.uint8], failure: BaseException | None) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._pending -= 1
            self._pending_bytes -= memory.nbytes
            self._spare.setdefault(memory.nbytes, []).append(memory)
            self._spare_bytes += memory.nbytes
            self._changed.notify_all()

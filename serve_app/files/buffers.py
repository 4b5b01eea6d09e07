"""A bound on the bytes that one replica holds for slow clients, over all of them.

A client that does not read keeps its response in this process, and one that does not finish sending
keeps its request here. Bounds per request multiply with the number of clients.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer

from starlette.types import Scope

UNCOUNTED = 64 << 10
"""Size up to which a message is not counted, bytes: uvicorn itself may hold as much per client."""

TRIM_FROM = 64 << 20
"""Bytes after whose release freed memory is returned to the system."""
_SCOPE_KEY = "earth2serve.buffers"


def trim_malloc() -> None:
    """Return freed memory to the system; do nothing without glibc.

    glibc keeps most of it: after 500 slow downloads, the process kept 5 GB. To have it return each
    buffer at once (`M_MMAP_THRESHOLD`) would cost half of the throughput, in page faults.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


class Buffers:
    """The bytes that the requests of one replica hold together, and their bounds; thread-safe.

    Parameters
    ----------
    large_chunks : int
        Bytes up to which files are read in large chunks.
    downloads : int
        Bytes up to which downloads start; the rest is for request bodies and JSON.
    total : int
        Bytes up to which anything is held.
    senders : int
        Downloads that read and send a chunk at once. The event loop serves every one that is ready
        before it comes to a short call.
    trim : callable
        Returns freed memory to the system. Called `trim_after_s` after `TRIM_FROM` bytes or more
        were released.
    """

    def __init__(
        self,
        large_chunks: int = 256 << 20,
        downloads: int = 384 << 20,
        total: int = 512 << 20,
        senders: int = 8,
        trim: Callable[[], None] = trim_malloc,
        trim_after_s: float = 5.0,
    ) -> None:
        self.large_chunks = large_chunks
        self.downloads = downloads
        self.total = total
        self.turns = asyncio.Semaphore(senders)
        self.held = 0
        self._peak = 0
        self._trim = trim
        self._trim_after_s = trim_after_s
        self._timer: Timer | None = None
        self._lock = Lock()

    @contextmanager
    def share(self, scope: Scope) -> Iterator[Share]:
        """Return the share of one request, found by `share_of`; it is released at the end."""
        share = scope[_SCOPE_KEY] = Share(self)
        try:
            yield share
        finally:
            share.close()

    def hold(self, size: int, bound: int) -> bool:
        """Hold more bytes, unless that exceeds a bound."""
        with self._lock:
            if self.held + size > bound:
                return False
            self.held += size
            self._peak = max(self._peak, self.held)
            return True

    def release(self, size: int) -> None:
        """Hold fewer bytes."""
        with self._lock:
            self.held -= size
            if self._peak - self.held >= TRIM_FROM and self._timer is None:
                self._timer = Timer(self._trim_after_s, self._trim_now)
                self._timer.daemon = True
                self._timer.start()

    def _trim_now(self) -> None:
        with self._lock:
            self._timer = None
            self._peak = self.held
        self._trim()


class Share:
    """The bytes that one request holds; thread-safe."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.held = 0
        self.covers_response = False
        """Whether the response holds its bytes here itself, and waits until they are sent."""
        self._closed = False
        self._lock = Lock()

    def hold(self, size: int, bound: int) -> bool:
        """Hold more bytes, unless all requests together would exceed a bound."""
        with self._lock:
            # A thread can outlive its request, and nothing would release what it holds then.
            if self._closed or not self.buffers.hold(size, bound):
                return False
            self.held += size
            return True

    def release(self, size: int) -> None:
        """Release bytes."""
        with self._lock:
            if not self._closed:
                self.held -= size
                self.buffers.release(size)

    def close(self) -> None:
        """Release everything and hold nothing more."""
        with self._lock:
            self.buffers.release(self.held)
            self.held = 0
            self._closed = True


def share_of(scope: Scope) -> Share:
    """Return the share of a request; one of its own if nothing bounds the application."""
    share: Share = scope.get(_SCOPE_KEY) or Share(Buffers())
    return share


def split_tail(content: bytes) -> list[bytes]:
    """Return content as two objects, the second of `UNCOUNTED` bytes."""
    return [each for each in (content[:-UNCOUNTED], content[-UNCOUNTED:]) if each]

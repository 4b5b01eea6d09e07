"""A slow client whose server goes away in the middle of a file, and that goes on at another."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from dataclasses import dataclass, field

import httpx

PIECE, PAUSE_S = 1 << 13, 0.1
"""Bytes at a time, and pause behind them: a file of megabytes outlasts the end of a cluster."""
BUFFER = 1 << 18
"""What the system may hold for the client, some messages of loopback; by itself it takes more."""
LIMIT_S = 120.0


@dataclass
class Download:
    """The download of one file.

    Parameters
    ----------
    path : str
        The same on both servers.
    """

    path: str
    content: bytearray = field(default_factory=bytearray)
    etag: str = ""
    size: int = 0
    """In bytes, as the first server tells it."""
    lost_at: int | None = None
    """What had come when the first server went away."""
    resumed: str = ""
    """What the second one answered: status and range."""

    def __post_init__(self) -> None:
        self._hurry = threading.Event()

    def begin(self, base_url: str) -> None:
        """Begin to read, in a thread; returns when some has come."""
        self._thread = threading.Thread(target=self._read, args=[base_url], name="download")
        self._thread.start()
        deadline = time.monotonic() + LIMIT_S
        while not self.content:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"nothing comes of {self.path}")
            time.sleep(0.01)

    def go_on(self, base_url: str) -> None:
        """Have from another server what the first one, which is gone, has not sent."""
        # Some of it is in the system's buffers.
        self._hurry.set()
        self._thread.join()
        begin = len(self.content)
        headers = {"Range": f"bytes={begin}-", "If-Range": self.etag}
        answer = httpx.get(f"{base_url}{self.path}", headers=headers, timeout=LIMIT_S)
        self.resumed = f"{answer.status_code} {answer.headers.get('content-range')}"
        self.content += answer.content

    @property
    def sha256(self) -> str:
        """Of all that has come."""
        return hashlib.sha256(self.content).hexdigest()

    def _read(self, base_url: str) -> None:
        transport = httpx.HTTPTransport(
            socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)]
        )
        with (
            httpx.Client(transport=transport, timeout=LIMIT_S) as http,
            http.stream("GET", f"{base_url}{self.path}") as answer,
        ):
            answer.raise_for_status()
            self.etag = answer.headers["etag"]
            self.size = int(answer.headers["content-length"])
            try:
                for piece in answer.iter_raw(PIECE):
                    self.content += piece
                    self._hurry.wait(PAUSE_S)
            except httpx.TransportError:
                self.lost_at = len(self.content)

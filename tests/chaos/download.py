"""A slow client whose server stops during a download, which it resumes at another server."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from dataclasses import dataclass, field

import httpx

PIECE, PAUSE_S = 1 << 13, 0.1
"""Bytes per read, and the pause after it: megabytes take longer than stopping a cluster."""
BUFFER = 1 << 18
"""Receive buffer, a few messages of loopback; the default is larger."""
LIMIT_S = 120.0


@dataclass
class Download:
    """The download of one file.

    Parameters
    ----------
    path : str
        Path of the file on both servers.
    """

    path: str
    content: bytearray = field(default_factory=bytearray)
    etag: str = ""
    size: int = 0
    """Bytes, as sent by the first server."""
    lost_at: int | None = None
    """Bytes received when the first server stopped."""
    resumed: str = ""
    """Status and range of the second server's response."""

    def __post_init__(self) -> None:
        self._full_speed = threading.Event()

    def start(self, base_url: str) -> None:
        """Start to read in a thread; return after the first bytes."""
        self._thread = threading.Thread(target=self._read, args=[base_url], name="download")
        self._thread.start()
        deadline = time.monotonic() + LIMIT_S
        while not self.content:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"no bytes of {self.path}")
            time.sleep(0.01)

    def resume(self, base_url: str) -> None:
        """Read the rest of the file from another server."""
        # Some of it is still in the system's buffers.
        self._full_speed.set()
        self._thread.join()
        received = len(self.content)
        headers = {"Range": f"bytes={received}-", "If-Range": self.etag}
        response = httpx.get(f"{base_url}{self.path}", headers=headers, timeout=LIMIT_S)
        self.resumed = f"{response.status_code} {response.headers.get('content-range')}"
        self.content += response.content

    @property
    def sha256(self) -> str:
        """Checksum of the received bytes."""
        return hashlib.sha256(self.content).hexdigest()

    def _read(self, base_url: str) -> None:
        transport = httpx.HTTPTransport(
            socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)]
        )
        with (
            httpx.Client(transport=transport, timeout=LIMIT_S) as http,
            http.stream("GET", f"{base_url}{self.path}") as response,
        ):
            response.raise_for_status()
            self.etag = response.headers["etag"]
            self.size = int(response.headers["content-length"])
            try:
                for piece in response.iter_raw(PIECE):
                    self.content += piece
                    self._full_speed.wait(PAUSE_S)
            except httpx.TransportError:
                self.lost_at = len(self.content)

"""Media types of delivered files, by suffix."""

from __future__ import annotations

from pathlib import PurePosixPath

MEDIA_TYPES = {
    ".json": "application/json",
    ".nc": "application/netcdf",
    ".png": "image/png",
    ".sha256": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".zip": "application/zip",
}
BINARY = "application/octet-stream"
"""All other files, such as the chunks of a Zarr store."""


def media_type(key: str) -> str:
    """Return the media type of a file."""
    return MEDIA_TYPES.get(PurePosixPath(key).suffix.lower(), BINARY)

"""Result files in Blob Storage."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.azure.blobs import Blob, Blobs
from deployments.results.names import result_folder
from deployments.results.options import BlobResultsOptions
from serve_app.files.paths import ResultsUnavailable, split_path
from serve_app.files.preconditions import Validators
from workflows.errors import ResultsNotFound, StageFailed

logger = logging.getLogger("ray.serve")

SMALL = 4 << 20
"""Size up to which a blob is read when it is opened, bytes: one request instead of two."""
RETRY_LIMIT_S = 15.0
"""Short, because a client waits."""


class BlobFile:
    """A blob, in the state in which it was opened; without `content` it is read from the store."""

    read_ahead = 2
    reads_are_cheap = False

    def __init__(self, blobs: Blobs, blob: Blob, content: bytes | None, relative: str) -> None:
        self._blobs = blobs
        self._blob = blob
        self._content = content
        self._relative = relative
        self.size = blob.size
        modified = int(blob.modified.timestamp())
        self.validators = Validators(blob.etag, min(modified, int(time.time())))

    def read(self, part: range) -> bytes:
        """Return the bytes of a range."""
        content = self._content
        if content is not None:
            return content[part.start : part.stop]
        with _translate_blob_errors(self._relative):
            try:
                return self._blobs.read(self._blob, part)
            except FileNotFoundError:
                raise ResultsUnavailable(f"{self._relative!r} changed while it was read") from None

    def free(self) -> None:
        """Drop the content."""
        self._content = None

    def close(self) -> None:
        """Drop the content; no connection is held."""
        self._content = None


class BlobFolder:
    """The blobs of an execution's results, see `serve_app.files.protocols.Folder`."""

    def __init__(self, blobs: Blobs, folder: str) -> None:
        self._blobs = blobs
        self._folder = folder

    def open(self, relative: str, *, whole: bool) -> BlobFile:
        """Open a blob."""
        names = split_path(relative)
        if not names or relative.endswith("/"):
            raise ResultsNotFound(f"{relative!r} is not a result file")
        key = "/".join((self._folder, *names))
        content: bytes | None = None
        with _translate_blob_errors(relative):
            try:
                blob = None if whole else self._blobs.head(key)
                if blob is None:
                    # Also after a HEAD that found nothing: only a GET shows whether the whole
                    # container is missing, which must not look like a missing Zarr chunk.
                    blob, content = self._blobs.open(key, SMALL)
            except (FileNotFoundError, ValueError):
                raise ResultsNotFound(f"there is no result file {relative!r}") from None
        if blob.is_folder:
            raise ResultsNotFound(f"{relative!r} is not a result file")
        return BlobFile(self._blobs, blob, content, relative)


class BlobResults:
    """The results of all executions, see `serve_app.files.protocols.Results`."""

    def __init__(self, options: BlobResultsOptions) -> None:
        self._blobs = Blobs(options.model_copy(update={"retry_limit_s": RETRY_LIMIT_S}))

    def __call__(self, workflow: str, execution_id: str) -> BlobFolder:
        """Return the folder of an execution."""
        return BlobFolder(self._blobs, result_folder(workflow, execution_id))


@contextmanager
def _translate_blob_errors(relative: str) -> Iterator[None]:
    """Raise ResultsUnavailable for an error of Blob Storage; only the log has the reason."""
    try:
        yield
    except StageFailed as error:
        logger.warning("cannot read %r: %s", relative, error)
        raise ResultsUnavailable(f"{relative!r} cannot be read now") from None

"""Result files in Blob Storage, opened for a download."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.azure.blobs import Blob, Blobs
from deployments.azure.options import BlobResultsOptions
from deployments.results.names import result_folder
from serve_app.files.paths import ResultsUnavailable, names_of
from serve_app.files.preconditions import Validators
from workflows.errors import ResultsNotFound, StageFailed

logger = logging.getLogger("ray.serve")

SMALL = 4 << 20
"""Bytes up to which a blob is read where it is opened: one request instead of two."""
RETRY_LIMIT_S = 15.0
"""Somebody waits for the answer."""


class BlobFile:
    """A blob in the state in which it was opened.

    Parameters
    ----------
    blobs : Blobs
    blob : Blob
    content : bytes or None
        None if it is to be read part by part.
    relative : str
        Its path as the client sent it, for messages.
    """

    read_ahead = 2

    def __init__(self, blobs: Blobs, blob: Blob, content: bytes | None, relative: str) -> None:
        self._blobs = blobs
        self._blob = blob
        self._content = content
        self._relative = relative
        self.size = blob.size
        modified = int(blob.modified.timestamp())
        self.validators = Validators(blob.etag, min(modified, int(time.time())))

    def read(self, part: range) -> bytes:
        """Read one part whole."""
        if self._content is not None:
            return self._content[part.start : part.stop]
        with _answering_for(self._relative):
            try:
                return self._blobs.read(self._blob, part)
            except FileNotFoundError:
                raise ResultsUnavailable(f"{self._relative!r} changed while it was read") from None

    def close(self) -> None:
        """Nothing is open."""


class BlobFolder:
    """The blobs of an execution's results, as `serve_app.files.serving.Folder` describes them."""

    def __init__(self, blobs: Blobs, folder: str) -> None:
        self._blobs = blobs
        self._folder = folder

    def open(self, relative: str, *, whole: bool) -> BlobFile:
        """Open a blob."""
        names = names_of(relative)
        if not names or relative.endswith("/"):
            raise ResultsNotFound(f"{relative!r} is not a result file")
        key = "/".join((self._folder, *names))
        content: bytes | None = None
        with _answering_for(relative):
            try:
                blob = None if whole else self._blobs.head(key)
                if blob is None:
                    # One that is not there is looked at again: only this way tells whether the
                    # whole container is missing, which is no answer to a reader of Zarr.
                    blob, content = self._blobs.open(key, SMALL)
            except (FileNotFoundError, ValueError):
                raise ResultsNotFound(f"there is no result file {relative!r}") from None
        if blob.is_folder:
            raise ResultsNotFound(f"{relative!r} is not a result file")
        return BlobFile(self._blobs, blob, content, relative)


class BlobResults:
    """The results of all executions, as `serve_app.files.serving.Results` describes them."""

    def __init__(self, options: BlobResultsOptions) -> None:
        self._blobs = Blobs(options.model_copy(update={"retry_limit_s": RETRY_LIMIT_S}))

    def __call__(self, workflow: str, execution_id: str) -> BlobFolder:
        """Give the folder of an execution."""
        return BlobFolder(self._blobs, result_folder(workflow, execution_id))


@contextmanager
def _answering_for(relative: str) -> Iterator[None]:
    """Turn what Blob Storage refuses into an answer; the reason is for the operator."""
    try:
        yield
    except StageFailed as error:
        logger.warning("%r cannot be read: %s", relative, error)
        raise ResultsUnavailable(f"{relative!r} cannot be read now") from None

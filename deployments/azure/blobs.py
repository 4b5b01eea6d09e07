"""Blobs of one container: the few calls that results need, with errors in our words.

obstore does the work: it is written in Rust, lets other threads run meanwhile, and tries again
what was busy or out of reach. What it says names URLs, so nothing of it is passed on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

from deployments.azure.errors import (
    blob_failure,
    is_untrusted,
    is_without_container,
    status_and_code,
)
from deployments.azure.large_blob import digests, upload
from deployments.azure.listing import DIGEST, FOLDER
from deployments.azure.options import AzureOptions
from deployments.azure.token import TokenBridge
from deployments.runtime.failures import TransientFailure
from deployments.runtime.log_context import ContextThreadPool
from workflows.delivery import Container
from workflows.execution import Stage

if TYPE_CHECKING:
    from obstore import Attributes, GetResult
    from obstore.store import AzureStore

T = TypeVar("T")
R = TypeVar("R")

THREADS = 16
"""Calls at once. Azurite takes 140 blobs of 66 kB a second with 4, 300 with 16, no more beyond."""
RETRY_LIMIT_S = 60.0
"""Steps of an execution's life are tried again as well: it survives some minutes."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=0.1), timedelta(seconds=5)
MAX_RETRIES = 1000
"""It is the time that ends them: refused connections would use up ten within seconds."""
CALL_LIMIT_S = 120.0
"""Of one try. A map of 0.25 degrees has 4 MiB."""
DELETED_AT_ONCE, DELETE_ATTEMPTS = 2560, 10


class BlobResultsOptions(BaseModel):
    """Where results lie in Blob Storage, and who this server is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    container: Container
    azure: AzureOptions = AzureOptions()
    scratch_dir: Path
    """Folder on the own disk, for files before they are uploaded and nothing else."""
    retry_limit_s: float = RETRY_LIMIT_S
    """How long a call is tried again."""


@dataclass(frozen=True)
class Blob:
    """What a blob's properties say."""

    key: str
    size: int
    sha256: str | None
    etag: str
    """Quotes included."""
    modified: datetime
    is_folder: bool
    """Whether it stands for a folder, on accounts that have folders."""


class Blobs:
    """The blobs of a container, or of a folder in one.

    Keys are relative to that folder. Methods may be called from any thread. All raise
    TransientFailure if Blob Storage is out of reach or busy for long, and StageFailed if it
    refuses.
    """

    def __init__(
        self,
        options: BlobResultsOptions,
        *,
        threads: int = THREADS,
        token: TokenBridge | None = None,
    ) -> None:
        import obstore
        from obstore.store import AzureStore

        self._obstore: Any = obstore
        self._options = options
        # One of its own has a thread for good.
        self.token = token or TokenBridge(options.azure)
        self.pool = ContextThreadPool(threads, "blobs")
        container, azure = options.container, options.azure
        trusted = azure.ca_file and azure.ca_file.read_bytes()
        self._store: AzureStore = AzureStore(
            container.name,
            prefix=container.prefix or None,
            account_name=container.account,
            endpoint=container.account_url,
            credential_provider=self.token,
            # It would take them from the environment.
            use_emulator=False,
            use_fabric_endpoint=False,
            skip_signature=False,
            client_options={
                "timeout": timedelta(seconds=CALL_LIMIT_S),
                **({"root_certificate": trusted} if trusted else {}),
            },
            retry_config={
                "max_retries": MAX_RETRIES,
                "retry_timeout": timedelta(seconds=options.retry_limit_s),
                "backoff": {"init_backoff": FIRST_PAUSE, "max_backoff": LONGEST_PAUSE, "base": 2.0},
            },
        )

    def look(self) -> None:
        """See whether the container can be read: it is there, and this server may."""
        with self._told():
            next(iter(self._obstore.list(self._store, chunk_size=1)), None)

    def put(self, key: str, content: Any, media_type: str, sha256: str | None = None) -> None:
        """Write a blob, which appears whole.

        Parameters
        ----------
        key : str
        content : bytes or array of uint8
        media_type : str
        sha256 : str, optional
            Kept among its metadata.
        """
        with self._told():
            self._obstore.put(
                self._store,
                key,
                content,
                attributes=_attributes(media_type, sha256),
                use_multipart=False,
            )

    def create(self, key: str, content: bytes, media_type: str) -> bool:
        """Write a blob unless there is one; says whether this call did."""
        from obstore.exceptions import AlreadyExistsError

        with self._told():
            try:
                attributes = _attributes(media_type)
                self._obstore.put(self._store, key, content, attributes=attributes, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def upload(self, key: str, path: Path, media_type: str) -> bool:
        """Write a large file as a blob unless there is one; says whether this call did."""
        sha256, md5 = digests(path)
        return upload(
            path,
            self._options.container,
            key,
            self.token,
            self._options.azure.ca_file,
            media_type=media_type,
            metadata={DIGEST: sha256},
            md5=md5,
            retry_limit_s=self._options.retry_limit_s,
        )

    def get(self, key: str) -> bytes:
        """Read a blob; FileNotFoundError if there is none."""
        with self._told(key):
            return bytes(self._obstore.get(self._store, key).bytes())

    def open(self, key: str, at_most: int) -> tuple[Blob, bytes | None]:
        """Read a blob's properties, and its content unless that is longer than asked for.

        Raises
        ------
        FileNotFoundError
            If there is none. A container that is missing is told apart, as `head` cannot.
        """
        with self._told(key):
            found = self._obstore.get(self._store, key)
            blob = _blob(key, found)
            return blob, bytes(found.bytes()) if blob.size <= at_most else None

    def read(self, blob: Blob, part: range) -> bytes:
        """Read a part of a blob, of just the state that was looked at.

        Raises
        ------
        FileNotFoundError
            If it was removed or written anew.
        """
        from obstore.exceptions import PreconditionError

        options = {"range": (part.start, part.stop), "if_match": blob.etag}
        with self._told(blob.key):
            try:
                found = self._obstore.get(self._store, blob.key, options=options)
                return bytes(found.bytes())
            except PreconditionError:
                raise FileNotFoundError(blob.key) from None

    def head(self, key: str) -> Blob | None:
        """Read a blob's properties; None if there is none."""
        try:
            with self._told(key):
                return _blob(key, self._obstore.get(self._store, key, options={"head": True}))
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        """Give keys and sizes of all blobs below a folder."""
        with self._told():
            for found in self._obstore.list(self._store, folder, chunk_size=1000):
                for each in found:
                    yield each["path"], each["size"]

    def folders(self, folder: str) -> Iterator[str]:
        """Give the names of the folders right below one, without what lies in them."""
        with self._told():
            found = self._obstore.list_with_delimiter(self._store, folder or None)
        for path in found["common_prefixes"]:
            yield path.rstrip("/").rpartition("/")[2]

    def delete(self, *keys: str) -> None:
        """Remove blobs; those that are not there are no matter."""
        for key in keys:
            try:
                with self._told(key):
                    self._obstore.delete(self._store, key)
            except FileNotFoundError:
                continue

    def remove(self, folder: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Remove all blobs below a folder, also while somebody still adds to it."""
        for attempt in range(DELETE_ATTEMPTS):
            listed = (key for key, _ in self.list(folder))
            left = False
            while keys := list(islice(listed, DELETED_AT_ONCE)):
                if should_stop():
                    return
                left = True
                try:
                    with self._told(folder):
                        self._obstore.delete(self._store, keys)
                except FileNotFoundError:
                    # Somebody else removes them, too.
                    continue
                except TransientFailure:
                    # Of many that are removed at once, obstore tries none again.
                    if attempt == DELETE_ATTEMPTS - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
            if not left:
                return
        raise TransientFailure(Stage.PACKAGE, "somebody still writes what is to be removed")

    def each(self, call: Callable[[T], R], items: Iterable[T], ahead: int = THREADS) -> Iterator[R]:
        """Call something for every item, several at once; gives what they give, in order."""
        given = iter(items)
        begun: deque[Future[R]] = deque()
        try:
            for item in given:
                begun.append(self.pool.submit(call, item))
                if len(begun) >= ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            # Whoever gets an error cleans up: nothing may come after that.
            wait([future for future in begun if not future.cancel()])

    @contextmanager
    def _told(self, key: str = "") -> Iterator[None]:
        """Turn what obstore raises into ours; FileNotFoundError stays, with the key alone."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (FileNotFoundError, BaseError) as error:
            said = str(error)
            status, code = status_and_code(said)
            if isinstance(error, FileNotFoundError) and not is_without_container(code):
                raise FileNotFoundError(key) from None
            untrusted = is_untrusted(status, said)
            raise blob_failure(status, code, self.token.failure, untrusted=untrusted) from None


def _blob(key: str, found: GetResult) -> Blob:
    meta, attributes = found.meta, found.attributes
    return Blob(
        key=key,
        size=meta["size"],
        sha256=attributes.get(DIGEST),
        etag=str(meta["e_tag"]),
        modified=meta["last_modified"],
        is_folder=attributes.get(FOLDER, "").lower() == "true",
    )


def _attributes(media_type: str, sha256: str | None = None) -> Attributes:
    return {"Content-Type": media_type, **({DIGEST: sha256} if sha256 else {})}

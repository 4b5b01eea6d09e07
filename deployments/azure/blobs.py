"""Blobs of one container, for many small objects.

obstore does the work. It is written in Rust, releases the interpreter lock, and retries by itself.
`deployments.azure.rest` has the calls that obstore cannot make.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.azure.calls import RetriedCalls
from deployments.azure.errors import BlobError, BlobUnavailable
from deployments.azure.large_file import upload_large_file
from deployments.azure.local_file import LocalFile
from deployments.azure.options import ContainerOptions
from deployments.azure.rest import DIGEST, FOLDER, RestClient, Stored
from deployments.azure.token import TokenBridge
from deployments.runtime.failures import TransientFailure
from deployments.runtime.log_context import ContextThreadPool
from deployments.runtime.retries import Backoff, RetryPolicy
from deployments.runtime.threads import map_ahead

if TYPE_CHECKING:
    from obstore import Attributes, GetResult
    from obstore.store import AzureStore

T = TypeVar("T")
R = TypeVar("R")

THREADS = 16
"""Concurrent calls. Azurite writes 140 blobs of 66 kB per second with 4 and 300 with 16 or more."""
BLOB_CALL = RetryPolicy(initial_delay_s=0.1, max_delay_s=5.0, jitter=0.5)
MAX_RETRIES = 1000
"""Only the time limit ends retries: refused connections would use up ten within seconds."""
BATCH_DELETION = RetryPolicy(attempts=10, initial_delay_s=0.1)
DELETION_BATCH = 2560
BLOCKS_IN_FLIGHT, BLOCK_BYTES = 4, 8 << 20


@dataclass(frozen=True)
class Blob:
    """Properties of a blob."""

    key: str
    size: int
    sha256: str | None
    etag: str
    """With its quotes."""
    modified: datetime
    is_folder: bool
    """Whether it represents a folder, on accounts with a hierarchical namespace."""


class Blobs:
    """The blobs of a container, or of a folder in one.

    Keys are relative to that folder. All methods may be called from any thread and raise
    BlobUnavailable if Blob Storage stays busy or unreachable, and StageFailed if it refuses.
    """

    def __init__(
        self,
        options: ContainerOptions,
        *,
        threads: int = THREADS,
        token: TokenBridge | None = None,
    ) -> None:
        import obstore

        self._obstore: Any = obstore
        self._options = options
        self.token = token or TokenBridge(options.azure)
        self.pool = ContextThreadPool(threads, "blobs")
        self._store = _open_store(options, self.token)
        self.rest = RestClient(options, self.token)

    def close(self) -> None:
        """Close connections and threads."""
        self.pool.shutdown(wait=False)
        self.rest.close()

    def look(self) -> None:
        """Check that the container exists and may be read."""
        with self._translating():
            next(iter(self._obstore.list(self._store, chunk_size=1)), None)

    def put(self, key: str, content: Any, media_type: str, sha256: str | None = None) -> None:
        """Write a blob, which appears complete; its metadata have the SHA-256."""
        attributes = _attributes(media_type, sha256)
        with self._translating():
            self._obstore.put(self._store, key, content, attributes=attributes, use_multipart=False)

    async def put_async(self, key: str, content: Any, media_type: str, sha256: str) -> None:
        """Write a blob without blocking the event loop."""
        with self._translating():
            attributes = _attributes(media_type, sha256)
            await self._obstore.put_async(
                self._store, key, content, attributes=attributes, use_multipart=False
            )

    def create(self, key: str, content: bytes, media_type: str) -> bool:
        """Write a blob unless it exists; return whether this call did."""
        from obstore.exceptions import AlreadyExistsError

        with self._translating():
            try:
                attributes = _attributes(media_type)
                self._obstore.put(self._store, key, content, attributes=attributes, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def upload(self, key: str, path: Path, media_type: str, sha256: str) -> bool:
        """Write a large file as a blob unless it exists; return whether this call did.

        Must not be called from an event loop.
        """
        upload = upload_large_file(
            self.rest,
            key,
            LocalFile(
                key, path, path.stat().st_size, sha256, media_type, stage=self._options.stage
            ),
            call=self._calls(),
            in_flight=asyncio.Semaphore(BLOCKS_IN_FLIGHT),
            block_bytes=BLOCK_BYTES,
            overwrite=False,
        )
        return asyncio.run(upload)

    def get(self, key: str) -> bytes:
        """Return the content of a blob; FileNotFoundError if it does not exist."""
        with self._translating(key):
            return bytes(self._obstore.get(self._store, key).bytes())

    def open(self, key: str, at_most: int) -> tuple[Blob, bytes | None]:
        """Return the properties of a blob, and its content unless it is longer than `at_most`.

        Raises FileNotFoundError if the blob does not exist. Unlike in `head`, a missing container
        is another error.
        """
        with self._translating(key):
            result = self._obstore.get(self._store, key)
            blob = _blob(key, result)
            return blob, bytes(result.bytes()) if blob.size <= at_most else None

    def read(self, blob: Blob, part: range) -> bytes:
        """Return a part of a blob as it was when its properties were read.

        Raises FileNotFoundError if it was removed or overwritten.
        """
        from obstore.exceptions import PreconditionError

        options = {"range": (part.start, part.stop), "if_match": blob.etag}
        with self._translating(blob.key):
            try:
                result = self._obstore.get(self._store, blob.key, options=options)
                return bytes(result.bytes())
            except PreconditionError:
                raise FileNotFoundError(blob.key) from None

    def head(self, key: str) -> Blob | None:
        """Return the properties of a blob, or None if it does not exist."""
        try:
            with self._translating(key):
                return _blob(key, self._obstore.get(self._store, key, options={"head": True}))
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield keys and sizes of all blobs below a folder."""
        with self._translating():
            for page in self._obstore.list(self._store, folder, chunk_size=1000):
                for entry in page:
                    yield entry["path"], entry["size"]

    def describe(self, *folders: str) -> dict[str, Stored]:
        """Return sizes and checksums of all blobs below folders, by key.

        Must not be called from an event loop.
        """

        async def describe() -> dict[str, Stored]:
            call = self._calls()
            listings = await asyncio.gather(*(self.rest.list_all(each, call) for each in folders))
            return {key: stored for listing in listings for key, stored in listing.items()}

        return asyncio.run(describe())

    def _calls(self) -> RetriedCalls:
        policy = replace(BLOB_CALL, deadline_s=self._options.retry_limit_s)
        return RetriedCalls(self.pool, policy)

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of the folders directly below a folder."""
        with self._translating():
            result = self._obstore.list_with_delimiter(self._store, folder or None)
        for path in result["common_prefixes"]:
            yield path.rstrip("/").rpartition("/")[2]

    def delete(self, *keys: str) -> None:
        """Remove blobs; missing ones are ignored."""
        for key in keys:
            try:
                with self._translating(key):
                    self._obstore.delete(self._store, key)
            except FileNotFoundError:
                continue

    def remove(self, folder: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Remove all blobs below a folder, even while others are being added.

        Raises TransientFailure if blobs are added faster than they are removed.
        """
        backoff = Backoff(BATCH_DELETION)
        while True:
            keys = (key for key, _ in self.list(folder))
            is_empty, failure = True, None
            while batch := list(islice(keys, DELETION_BATCH)):
                if should_stop():
                    return
                is_empty = False
                try:
                    with self._translating(folder):
                        self._obstore.delete(self._store, batch)
                except FileNotFoundError:
                    # Another caller removes them as well.
                    continue
                except BlobUnavailable as error:
                    # obstore does not retry the blobs of a batch that failed.
                    failure = error
                    break
            if is_empty:
                return
            delay_s = backoff.next_delay_s()
            if delay_s is None:
                raise failure or TransientFailure(
                    self._options.stage, "blobs are added faster than they are removed"
                )
            if failure is not None:
                time.sleep(delay_s)

    def each(self, call: Callable[[T], R], items: Iterable[T], ahead: int = THREADS) -> Iterator[R]:
        """Call a function for every item, several concurrently; yield its results in order."""
        return map_ahead(self.pool, call, items, ahead)

    @contextmanager
    def _translating(self, key: str = "") -> Iterator[None]:
        """Translate errors of obstore; a missing blob raises FileNotFoundError with its key."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (FileNotFoundError, BaseError) as error:
            failure = BlobError.of_obstore(error, self.token.failure)
            if isinstance(error, FileNotFoundError) and not failure.is_container_missing:
                raise FileNotFoundError(key) from None
            container, stage = self._options.container, self._options.stage
            raise failure.as_stage_failure(container, stage) from None


def _open_store(options: ContainerOptions, token: TokenBridge) -> AzureStore:
    from obstore.store import AzureStore

    container, ca_file = options.container, options.azure.ca_file
    return AzureStore(
        container.name,
        prefix=container.prefix or None,
        account_name=container.account,
        endpoint=container.account_url,
        credential_provider=token,
        # By default these come from the environment.
        use_emulator=False,
        use_fabric_endpoint=False,
        skip_signature=False,
        client_options={
            "timeout": timedelta(seconds=options.request_timeout_s),
            **({"root_certificate": ca_file.read_bytes()} if ca_file else {}),
        },
        retry_config={
            "max_retries": MAX_RETRIES if options.retry_limit_s else 0,
            "retry_timeout": timedelta(seconds=options.retry_limit_s),
            "backoff": {
                "init_backoff": timedelta(seconds=BLOB_CALL.initial_delay_s),
                "max_backoff": timedelta(seconds=BLOB_CALL.max_delay_s),
                "base": BLOB_CALL.factor,
            },
        },
    )


def _blob(key: str, result: GetResult) -> Blob:
    meta, attributes = result.meta, result.attributes
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

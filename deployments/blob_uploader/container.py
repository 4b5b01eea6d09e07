"""One Blob container, as uploads need it.

Two clients share the work. azure-storage-blob tells exactly why something was refused and has MD5
sums checked on arrival, but costs 2 ms of processor time a call. obstore costs 0.3 ms and sends no
sums: it has the first try with each small file, and what it wrote is compared with a listing
afterwards, since Blob Storage keeps the MD5 of what arrived. What obstore could not do goes the
other way.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from deployments.azure.listing import DIGEST, BlobListing, Stored
from deployments.azure.options import AzureOptions
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.blocks import BlockUpload, OnBlock
from deployments.blob_uploader.files import UploadFile
from deployments.blob_uploader.limits import BlobLimits, SharedLimits
from deployments.blob_uploader.retry import DELEGATOR, Attempts
from workflows.delivery import Container
from workflows.errors import UploadFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient, UserDelegationKey
    from obstore.store import AzureStore

P = ParamSpec("P")
T = TypeVar("T")

_PLAIN = re.compile(r"[A-Za-z0-9._/=-]+")
"""Keys that obstore takes as they are; it escapes others in a way of its own."""
_SIGNABLE = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_LONGEST_LIFETIME = timedelta(days=7)
_CLOCK_SKEW = timedelta(minutes=5)


class BlobContainer:
    """A container, or a folder in one; keys are relative to it.

    All methods raise UploadFailed if Blob Storage refuses, and TransientFailure if it stays busy or
    out of reach. Cancelling one leaves at most calls that are on their way.
    """

    def __init__(
        self,
        container: Container,
        azure: AzureOptions,
        token: TokenBridge,
        limits: BlobLimits,
        crew: SharedLimits,
    ) -> None:
        self._container = container
        self._azure = azure
        self._token = token
        self._limits = limits
        self._crew = crew
        self._attempts = Attempts(
            container,
            most=limits.attempts,
            pause_s=limits.pause_s,
            longest_pause_s=limits.longest_pause_s,
        )
        self._listing = BlobListing(container, token, **self._transport_options())
        self._client = self._open_client()
        self._fast = self._open_fast()
        self._unchecked: dict[str, tuple[UploadFile, bytes]] = {}

    async def listed(self, folder: str) -> dict[str, Stored]:
        """Give the blobs below a folder, by key."""
        below = f"{self._name(folder)}/"
        skipped = len(below) - len(folder) - 1
        found: dict[str, Stored] = {}
        marker = ""
        while True:
            page, marker = await self._call(self._listing.page, below, marker)
            found |= {name[skipped:]: stored for name, stored in page.items()}
            if not marker:
                return found

    async def put_small(self, key: str, file: UploadFile) -> None:
        """Write a file in one piece; it counts as written when `check` has passed."""
        async with self._crew.small:
            content, md5 = await asyncio.to_thread(_read, file)
            if await self._put_fast(key, file, content):
                self._unchecked[key] = file, md5
            else:
                await self._put(key, file, content, md5)

    async def put_checked(self, key: str, file: UploadFile) -> None:
        """Write a small file in one piece; it counts as written at once."""
        async with self._crew.small:
            await self._put(key, file, *await asyncio.to_thread(_read, file))

    async def put_large(self, key: str, file: UploadFile, on_block: OnBlock) -> None:
        """Write a file block by block."""
        await BlockUpload(
            client=self._client.get_blob_client(self._name(key)),
            file=file,
            call=self._call,
            in_flight=self._crew.blocks,
            block_bytes=self._limits.block_bytes,
            on_block=on_block,
        ).run()

    async def check(self, folder: str) -> dict[str, Stored]:
        """Compare what `put_small` wrote below a folder with what is there; write what differs.

        Returns
        -------
        dict
            The blobs below the folder, by key.
        """
        listed = await self.listed(folder)
        for key, (file, md5) in list(self._unchecked.items()):
            written = Stored(file.size, file.sha256, md5)
            if listed.get(key) != written:
                await self.put_checked(key, file)
                listed[key] = written
        self._unchecked.clear()
        return listed

    async def signed_url(self, folder: str, lifetime_s: float) -> str:
        """Sign a URL with which anybody can read the blobs below a folder for a while.

        It reads and does nothing else, over HTTPS only. The account has to have folders
        (hierarchical namespace): others know no signature of a part of a container.

        Parameters
        ----------
        folder : str
            Never empty: a whole container is not given away.
        lifetime_s : float
            At most 7 days, which is how long the key lives that signs.
        """
        from azure.storage.blob import generate_blob_sas

        lifetime = timedelta(seconds=lifetime_s)
        if not all(map(_SIGNABLE.fullmatch, folder.split("/"))):
            raise UploadFailed(Stage.UPLOAD, f"{folder[:80]!r} is no folder that can be signed")
        if not timedelta(0) < lifetime <= _LONGEST_LIFETIME:
            raise UploadFailed(Stage.UPLOAD, "a signature is valid for 7 days at most")
        name = self._name(folder)
        now = datetime.now(UTC)
        start = now - _CLOCK_SKEW
        expiry = min(now + lifetime, start + _LONGEST_LIFETIME)
        loop = asyncio.get_running_loop()
        key = await self._attempts(
            lambda: loop.run_in_executor(self._crew.threads, self._delegation_key, start, expiry),
            role=DELEGATOR,
        )
        query = generate_blob_sas(
            self._container.account,
            self._container.name,
            name,
            user_delegation_key=key,
            permission="r",
            expiry=expiry,
            protocol="https",
            is_directory=True,
            sdd=len(name.split("/")),
        )
        return f"{self._container.account_url}/{self._container.name}/{name}?{query}"

    def close(self) -> None:
        """Close connections."""
        self._listing.close()
        self._client.close()  # type: ignore[no-untyped-call]

    def _name(self, key: str) -> str:
        """Give a blob's name in the container."""
        return f"{self._container.prefix}/{key}" if self._container.prefix else key

    async def _call(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call that blocks, in a thread and as often as needed."""
        loop = asyncio.get_running_loop()
        bound = partial(call, *args, **kwargs)
        return await self._attempts(lambda: loop.run_in_executor(self._crew.threads, bound))

    async def _put_fast(self, key: str, file: UploadFile, content: bytes) -> bool:
        """Write a small blob if that goes without trouble; says whether it did."""
        import obstore
        from obstore.exceptions import BaseError

        name = self._name(key)
        if not _PLAIN.fullmatch(name):
            return False
        await self._attempts.turn()
        attributes: Any = {"Content-Type": file.media_type, DIGEST: file.sha256}
        try:
            await obstore.put_async(
                self._fast, name, content, attributes=attributes, use_multipart=False
            )
        except (BaseError, OSError):
            # The other client finds out why, and whether it passes.
            return False
        return True

    async def _put(self, key: str, file: UploadFile, content: bytes, md5: bytes) -> None:
        from azure.storage.blob import ContentSettings

        await self._call(
            self._client.upload_blob,
            self._name(key),
            content,
            overwrite=True,
            validate_content=True,
            metadata={DIGEST: file.sha256},
            content_settings=ContentSettings(
                content_type=file.media_type, content_md5=bytearray(md5)
            ),
        )

    def _delegation_key(self, start: datetime, expiry: datetime) -> UserDelegationKey:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient(self._container.account_url, **self._client_options()) as service:
            key: UserDelegationKey = service.get_user_delegation_key(start, expiry)
            return key

    def _open_client(self) -> ContainerClient:
        from azure.storage.blob import ContainerClient

        return ContainerClient(
            self._container.account_url, self._container.name, **self._client_options()
        )

    def _transport_options(self) -> dict[str, Any]:
        ca_file = self._azure.ca_file
        return {
            "connection_verify": str(ca_file) if ca_file else True,
            # The first one bounds sending, too.
            "connection_timeout": self._limits.request_timeout_s,
            "read_timeout": self._limits.request_timeout_s,
        }

    def _client_options(self) -> dict[str, Any]:
        return {
            **self._transport_options(),
            "credential": self._token,
            "retry_total": 0,
            # A small file goes in one piece whatever the client takes for small.
            "max_single_put_size": max(self._limits.small_bytes, 1 << 20),
        }

    def _open_fast(self) -> AzureStore:
        from obstore.store import AzureStore

        ca_file = self._azure.ca_file
        timeout = timedelta(seconds=self._limits.request_timeout_s)
        return AzureStore(
            self._container.name,
            account_name=self._container.account,
            endpoint=self._container.account_url,
            credential_provider=self._token,
            # It would take these, like much else, from the environment.
            use_emulator=False,
            use_fabric_endpoint=False,
            skip_signature=False,
            client_options={
                "connect_timeout": timeout,
                "timeout": timeout,
                **({"root_certificate": ca_file.read_bytes()} if ca_file else {}),
            },
            retry_config={"max_retries": 0},
        )


def _read(file: UploadFile) -> tuple[bytes, bytes]:
    """Read a file, and give its MD5, too."""
    content = file.read()
    return content, hashlib.md5(content, usedforsecurity=False).digest()

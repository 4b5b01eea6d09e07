"""Requests to one container that obstore cannot make.

The service checks bodies against an MD5, files are sent block by block, and listings contain
checksums. azure-storage-blob takes 2 ms of CPU time for a call, and 0.2 ms for each listed blob.

References
----------
Blob service REST API.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from deployments.azure.calls import RetriedCalls
from deployments.azure.errors import CONTRIBUTOR, DELEGATOR, BlobError
from deployments.azure.options import ContainerOptions
from deployments.azure.token import STORAGE_SCOPE, TokenBridge, TokenUnavailable
from deployments.runtime.failures import TransientFailure

if TYPE_CHECKING:
    from azure.core import PipelineClient
    from azure.storage.blob import UserDelegationKey

DIGEST = "sha256"
"""Metadata key of a blob's SHA-256."""
FOLDER = "hdi_isfolder"
"""Metadata key of a folder, on accounts with a hierarchical namespace."""
_VERSION = "2023-11-03"


@dataclass(frozen=True)
class Stored:
    """A blob in a listing."""

    size: int
    sha256: str | None
    md5: bytes | None


class RestClient:
    """The blobs of a container, or of a folder in one; see `deployments.azure.blobs.Blobs`.

    All methods block, may be called from any thread, make one attempt, and raise BlobUnavailable
    or StageFailed.
    """

    def __init__(self, options: ContainerOptions, token: TokenBridge) -> None:
        self._options = options
        self._token = token

    def list_page(self, folder: str, marker: str) -> tuple[dict[str, Stored], str]:
        """Return one page of the blobs below a folder, by key, and the marker of the next page.

        The marker is empty for the first page, and after the last one.
        """
        prefix = f"{self._options.name_of(folder)}/"
        skipped = len(prefix) - len(folder) - 1
        parameters = {"restype": "container", "comp": "list", "include": "metadata"}
        parameters |= {"prefix": prefix, "marker": marker}
        _, content = self._send("GET", self._url, parameters)
        page = _parse(content)
        blobs = {}
        for blob in page.iterfind("Blobs/Blob"):
            name = blob.find("Name")
            if name is None or blob.find(f"Metadata/{FOLDER}") is not None:
                continue
            text = name.text or ""
            # Names that XML cannot represent are percent-encoded.
            text = unquote(text) if name.get("Encoded") == "true" else text
            md5 = blob.findtext("Properties/Content-MD5")
            blobs[text[skipped:]] = Stored(
                size=int(blob.findtext("Properties/Content-Length") or 0),
                sha256=blob.findtext(f"Metadata/{DIGEST}"),
                md5=b64decode(md5) if md5 else None,
            )
        return blobs, page.findtext("NextMarker") or ""

    async def list_all(self, folder: str, call: RetriedCalls) -> dict[str, Stored]:
        """Return the blobs below a folder, by key."""
        blobs: dict[str, Stored] = {}
        marker = ""
        while True:
            page, marker = await call(self.list_page, folder, marker)
            blobs |= page
            if not marker:
                return blobs

    def put(self, key: str, content: bytes, media_type: str, sha256: str, md5: bytes) -> None:
        """Write a blob in one request."""
        headers = {"x-ms-blob-type": "BlockBlob", "Content-MD5": _base64(md5)}
        headers |= _properties(media_type, sha256, md5)
        self._send("PUT", self._blob_url(key), headers=headers, content=content)

    def uncommitted_blocks(self, key: str) -> dict[str, int]:
        """Return names and sizes of the blocks of a blob that were sent but not committed."""
        parameters = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        status, content = self._send(
            "GET", self._blob_url(key), parameters, expected=("BlobNotFound",)
        )
        blocks = () if status == 404 else _parse(content).iterfind("UncommittedBlocks/Block")
        return {
            b64decode(block.findtext("Name") or "").decode(): int(block.findtext("Size") or 0)
            for block in blocks
        }

    def put_block(self, key: str, name: str, content: bytes) -> None:
        """Send one block."""
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        parameters = {"comp": "block", "blockid": _base64(name.encode())}
        headers = {"Content-MD5": _base64(md5)}
        self._send("PUT", self._blob_url(key), parameters, headers, content)

    def commit_blocks(
        self,
        key: str,
        names: Sequence[str],
        media_type: str,
        sha256: str,
        md5: bytes,
        *,
        overwrite: bool,
    ) -> bool:
        """Make a blob of blocks; return False if it exists and must not be overwritten.

        Raises TransientFailure if another writer committed the blob, which discards other blocks.
        """
        blocks = "".join(f"<Latest>{_base64(name.encode())}</Latest>" for name in names)
        status, content = self._send(
            "PUT",
            self._blob_url(key),
            {"comp": "blocklist"},
            _properties(media_type, sha256, md5) | ({} if overwrite else {"If-None-Match": "*"}),
            f"<BlockList>{blocks}</BlockList>".encode(),
            expected=("BlobAlreadyExists", "InvalidBlockList"),
        )
        if status == 400:
            raise TransientFailure(
                self._options.stage, f"another writer wrote {key} at the same time"
            )
        return status != 409

    def delegation_key(self, start: datetime, expiry: datetime) -> UserDelegationKey:
        """Return a key that signs URLs in the name of this server's identity."""
        from azure.storage.blob import UserDelegationKey

        times = (f"{each:%Y-%m-%dT%H:%M:%SZ}" for each in (start, expiry))
        body = "<KeyInfo><Start>{}</Start><Expiry>{}</Expiry></KeyInfo>".format(*times)
        _, content = self._send(
            "POST",
            self._options.container.account_url,
            {"restype": "service", "comp": "userdelegationkey"},
            content=body.encode(),
            role=DELEGATOR,
        )
        found, key = _parse(content), UserDelegationKey()  # type: ignore[no-untyped-call]
        key.value = found.findtext("Value")
        for name in ("Oid", "Tid", "Start", "Expiry", "Service", "Version"):
            setattr(key, f"signed_{name.lower()}", found.findtext(f"Signed{name}"))
        return key

    def close(self) -> None:
        """Close connections."""
        if "_client" in self.__dict__:
            self._client.close()

    def _send(
        self,
        method: str,
        url: str,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        *,
        expected: Collection[str] = (),
        role: str = CONTRIBUTOR,
    ) -> tuple[int, bytes]:
        """Return the status and body of a response.

        Errors with one of the `expected` codes of Azure are returned as well. `role` is the one
        that the request needs.
        """
        from azure.core.exceptions import AzureError
        from azure.core.rest import HttpRequest

        # azure-core does not quote parameters.
        params = {name: quote(value, safe="") for name, value in (parameters or {}).items()}
        sent = {"x-ms-version": _VERSION, "x-ms-date": formatdate(usegmt=True), **(headers or {})}
        request = HttpRequest(method, url, params=params, headers=sent, content=content)
        try:
            response = self._client.send_request(request)
        except (AzureError, TokenUnavailable) as error:
            failure = BlobError.of_client(error)
        else:
            if response.status_code < 300:
                return response.status_code, response.content
            failure = BlobError.of_response(response)
            if failure.code in expected:
                return response.status_code, response.content
        options = self._options
        raise failure.as_stage_failure(options.container, options.stage, role)

    @cached_property
    def _client(self) -> PipelineClient[Any, Any]:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.core.pipeline.transport import RequestsTransport

        credential: Any = self._token
        ca_file, timeout_s = self._options.azure.ca_file, self._options.request_timeout_s
        return PipelineClient(
            self._options.container.account_url,
            policies=[BearerTokenCredentialPolicy(credential, STORAGE_SCOPE)],
            transport=RequestsTransport(
                connection_verify=str(ca_file) if ca_file else True,
                connection_timeout=timeout_s,  # also for sending
                read_timeout=timeout_s,
            ),
        )

    @property
    def _url(self) -> str:
        return f"{self._options.container.account_url}/{self._options.container.name}"

    def _blob_url(self, key: str) -> str:
        return f"{self._url}/{quote(self._options.name_of(key))}"


def _properties(media_type: str, sha256: str, md5: bytes) -> dict[str, str]:
    return {
        "x-ms-blob-content-type": media_type,
        "x-ms-blob-content-md5": _base64(md5),
        f"x-ms-meta-{DIGEST}": sha256,
    }


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _parse(content: bytes) -> ElementTree.Element:
    # The sender already holds the results, so it is trusted.
    return ElementTree.fromstring(content)  # noqa: S314

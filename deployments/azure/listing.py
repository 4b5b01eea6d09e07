"""What lies in a Blob container, page by page.

azure-storage-blob needs 0.2 ms of processor time for each blob that it lists: as long as obstore
does to write one. So the request is made, and its answer read, with what lies below it.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree

from deployments.azure.token import STORAGE_SCOPE, TokenBridge
from workflows.delivery import Container

if TYPE_CHECKING:
    from azure.core import PipelineClient

DIGEST = "sha256"
"""Name under which a blob's own metadata have its SHA-256."""
FOLDER = "hdi_isfolder"
"""What a folder has among its metadata, on accounts that have folders."""
_VERSION = "2023-11-03"


@dataclass(frozen=True)
class Stored:
    """What a listing says of a blob."""

    size: int
    sha256: str | None
    md5: bytes | None


class BlobListing:
    """Lists one container.

    Parameters
    ----------
    container : Container
    token : TokenBridge
    **transport
        Keyword arguments for the transport of azure-core.
    """

    def __init__(self, container: Container, token: TokenBridge, **transport: Any) -> None:
        from azure.core import PipelineClient
        from azure.core.pipeline.policies import BearerTokenCredentialPolicy
        from azure.core.pipeline.transport import RequestsTransport

        self._url = f"{container.account_url}/{container.name}"
        credential: Any = token
        self._client: PipelineClient[Any, Any] = PipelineClient(
            self._url,
            policies=[BearerTokenCredentialPolicy(credential, STORAGE_SCOPE)],
            transport=RequestsTransport(**transport),
        )

    def page(self, prefix: str, marker: str) -> tuple[dict[str, Stored], str]:
        """Give blobs whose names begin with a prefix, and what to ask the next page with.

        Parameters
        ----------
        prefix : str
        marker : str
            Empty for the first page, as that of the last page is.

        Raises
        ------
        AzureError
            As azure-storage-blob would.
        """
        from azure.core.exceptions import HttpResponseError
        from azure.core.rest import HttpRequest

        request = HttpRequest(
            "GET",
            self._url,
            params={
                "restype": "container",
                "comp": "list",
                "include": "metadata",
                "prefix": prefix,
                "marker": marker,
            },
            headers={"x-ms-version": _VERSION, "x-ms-date": formatdate(usegmt=True)},
        )
        response = self._client.send_request(request)
        if response.status_code != 200:
            raise HttpResponseError(_message(response.content), response=response)
        listed = _parse(response.content)
        found = {}
        for blob in listed.iterfind("Blobs/Blob"):
            name, metadata = blob.find("Name"), blob.find("Metadata")
            if name is None or (metadata is not None and metadata.find(FOLDER) is not None):
                continue
            text = name.text or ""
            # What XML has no letters for.
            text = unquote(text) if name.get("Encoded") == "true" else text
            md5 = blob.findtext("Properties/Content-MD5")
            found[text] = Stored(
                size=int(blob.findtext("Properties/Content-Length") or 0),
                sha256=blob.findtext(f"Metadata/{DIGEST}"),
                md5=b64decode(md5) if md5 else None,
            )
        return found, listed.findtext("NextMarker") or ""

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def _parse(content: bytes) -> ElementTree.Element:
    # Of the service that is trusted with the results.
    return ElementTree.fromstring(content)  # noqa: S314


def _message(content: bytes) -> str:
    try:
        return _parse(content).findtext("Message") or ""
    except ElementTree.ParseError:
        return ""

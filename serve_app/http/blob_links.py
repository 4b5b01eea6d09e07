"""Signed links to blobs, made in the ingress where results are stored in Blob Storage."""

from __future__ import annotations

from deployments.azure.options import AzureOptions
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.container import BlobContainer
from deployments.blob_uploader.limits import BlobLimits, SharedLimits
from deployments.results.names import result_folder
from workflows.delivery import Container

LIMITS = BlobLimits(attempts=2, blocks_in_flight=1, request_timeout_s=3.0)
"""Short, because a client waits and the response is complete without a link."""


class BlobLinks:
    """Signs links to the blobs of executions, see `serve_app.http.context.Sign`.

    Parameters
    ----------
    azure : AzureOptions
        Identity of this server.
    """

    def __init__(self, azure: AzureOptions) -> None:
        self._azure = azure
        self._token = TokenBridge(azure)
        self._limits = SharedLimits.of(LIMITS)

    async def __call__(
        self, container: Container, workflow: str, execution_id: str, lifetime_s: float
    ) -> str:
        """Return a URL to which a file's name can be added, between its path and its query.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses to sign.
        """
        opened = BlobContainer(container, self._azure, self._token, LIMITS, self._limits)
        try:
            return await opened.signed_url(result_folder(workflow, execution_id), lifetime_s)
        finally:
            opened.close()

"""Links with which anybody can read one execution's blobs for a while, without a BlobUploader.

Where results lie in Blob Storage anyway, each ingress replica signs by itself.
"""

from __future__ import annotations

from deployments.azure.options import AzureOptions
from deployments.azure.token import TokenBridge
from deployments.blob_uploader.container import BlobContainer
from deployments.blob_uploader.limits import BlobLimits, SharedLimits
from deployments.results.blob_result import result_folder
from workflows.delivery import Container

LIMITS = BlobLimits(attempts=2, blocks_in_flight=1, request_timeout_s=3.0)
"""Somebody waits for the answer, which is right without a link."""


class BlobLinks:
    """Signs links, as `serve_app.http.context.Sign` describes it.

    Parameters
    ----------
    azure : AzureOptions
        Who this server is.
    """

    def __init__(self, azure: AzureOptions) -> None:
        self._azure = azure
        self._token = TokenBridge(azure)
        self._crew = SharedLimits.of(LIMITS)

    async def __call__(
        self, container: Container, workflow: str, execution_id: str, lifetime_s: float
    ) -> str:
        """Give a URL; put the name of a file between its path and its query.

        Raises
        ------
        UploadFailed
            If Blob Storage refuses to sign.
        """
        opened = BlobContainer(container, self._azure, self._token, LIMITS, self._crew)
        try:
            return await opened.signed_url(result_folder(workflow, execution_id), lifetime_s)
        finally:
            opened.close()

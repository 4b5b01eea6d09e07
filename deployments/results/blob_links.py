"""Signed links to results that are stored in Blob Storage."""

from __future__ import annotations

from deployments.azure.calls import RetriedCalls
from deployments.azure.options import AzureOptions, ContainerOptions
from deployments.azure.signed_urls import sign_folder
from deployments.azure.token import TokenBridge
from deployments.results.names import result_folder
from deployments.runtime.log_context import ContextThreadPool
from deployments.runtime.retries import RetryPolicy
from workflows.delivery import Container
from workflows.execution import Stage

SIGNING = RetryPolicy(attempts=2, initial_delay_s=0.3, jitter=0.5, max_requested_delay_s=3.0)
REQUEST_TIMEOUT_S = 3.0
"""Short, because a client waits and the response is complete without a link."""
THREADS = 5


class BlobLinks:
    """Signs links to the blobs of executions, for the ingress."""

    def __init__(self, azure: AzureOptions) -> None:
        self._azure = azure
        self._token = TokenBridge(azure)
        self._threads = ContextThreadPool(THREADS, "blob-links")

    async def __call__(
        self, container: Container, workflow: str, execution_id: str, lifetime_s: float
    ) -> str:
        """Return a URL to which a file's name can be added, between its path and its query.

        Raises
        ------
        StageFailed
            If Blob Storage refuses to sign or is unavailable.
        """
        options = ContainerOptions(
            container=container,
            azure=self._azure,
            stage=Stage.UPLOAD,
            request_timeout_s=REQUEST_TIMEOUT_S,
        )
        call = RetriedCalls(self._threads, SIGNING)
        folder = result_folder(workflow, execution_id)
        return await call(sign_folder, options, self._token, folder, lifetime_s)

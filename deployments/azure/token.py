"""Tokens for blocking clients, from an asynchronous credential."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deployments.azure.options import AzureOptions

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential
    from obstore.store import AzureBearerToken

STORAGE_SCOPE = "https://storage.azure.com/.default"
TOKEN_TIMEOUT_S = 60.0
"""Long, because a credential may try several sources in turn."""


class TokenUnavailable(Exception):
    """The credential returned no token.

    `kind` is the class of its error, whose text is not quoted. Another attempt may succeed if
    `is_transient`.
    """

    def __init__(self, kind: str, is_transient: bool) -> None:
        super().__init__(kind, is_transient)
        self.kind = kind
        self.is_transient = is_transient

    def __str__(self) -> str:
        return (
            f"the credential returned no token ({self.kind}): check args.azure.credential and "
            "this server's identity"
        )


class TokenBridge:
    """A credential with an event loop of its own, for use in any thread.

    It is a synchronous credential for azure-core and a ``credential_provider`` for obstore, opened
    at the first call.
    """

    def __init__(self, azure: AzureOptions) -> None:
        self._azure = azure
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._credential: AsyncTokenCredential | None = None
        self.failure: TokenUnavailable | None = None
        """Error of the last call; None if it returned a token."""

    def __call__(self) -> AzureBearerToken:
        """Return a token for Blob Storage in the form that obstore expects."""
        token = self.get_token(STORAGE_SCOPE)
        return {
            "token": token.token,
            "expires_at": datetime.fromtimestamp(token.expires_on, UTC),
        }

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return a token, which the credential caches; TokenUnavailable if there is none."""
        future = asyncio.run_coroutine_threadsafe(
            self._get_token(scopes, options), self._running_loop()
        )
        try:
            token = future.result(TOKEN_TIMEOUT_S)
        except Exception as error:
            future.cancel()
            self.failure = TokenUnavailable(type(error).__name__, _is_transient(error))
            # Not chained: the credential's error may quote its own arguments.
            raise self.failure from None
        self.failure = None
        return token

    async def _get_token(self, scopes: tuple[str, ...], options: Any) -> AccessToken:
        if self._credential is None:
            self._credential = self._azure.open_credential()
        return await self._credential.get_token(*scopes, **options)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="azure-tokens", daemon=True
                ).start()
            return self._loop


def _is_transient(error: BaseException) -> bool:
    """Return whether a credential could not be reached, rather than refused."""
    if isinstance(error, FutureTimeout | OSError):
        return True
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

    # CredentialUnavailableError is a ClientAuthenticationError: nothing is configured.
    return isinstance(error, ServiceRequestError) and not isinstance(
        error, ClientAuthenticationError
    )

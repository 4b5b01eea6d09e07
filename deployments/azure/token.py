"""Tokens for clients that ask in threads, from a credential that lives in an event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import TimeoutError as TooLate
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deployments.azure.options import AzureOptions

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential
    from obstore.store import AzureBearerToken

STORAGE_SCOPE = "https://storage.azure.com/.default"
LIMIT_S = 60.0
"""What a credential gets to answer in: one that tries several ways takes its time."""


class TokenUnavailable(Exception):
    """The credential gave no token; the text has nothing of what it said.

    Parameters
    ----------
    kind : str
        Class of its error.
    may_pass : bool
        Whether another try may succeed.
    """

    def __init__(self, kind: str, may_pass: bool) -> None:
        super().__init__(kind, may_pass)
        self.kind = kind
        self.may_pass = may_pass

    def __str__(self) -> str:
        return (
            f"the credential gave no token ({self.kind}): see to args.azure.credential and to this "
            "server's identity"
        )


class TokenBridge:
    """A credential in an event loop of its own, for any thread.

    It is a synchronous credential as azure-core's clients take it, and what obstore takes as
    ``credential_provider``.

    Parameters
    ----------
    azure : AzureOptions
        Makes the credential, at the first call.
    """

    def __init__(self, azure: AzureOptions) -> None:
        self._azure = azure
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._credential: AsyncTokenCredential | None = None
        self.failure: TokenUnavailable | None = None
        """Why the last call gave no token; None if it gave one."""

    def __call__(self) -> AzureBearerToken:
        """Give a token for Blob Storage, as obstore asks for it."""
        given = self.get_token(STORAGE_SCOPE)
        return {
            "token": given.token,
            "expires_at": datetime.fromtimestamp(given.expires_on, UTC),
        }

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Give a token; the credential caches it.

        Raises
        ------
        NoToken
            If it has none to give.
        """
        asked = asyncio.run_coroutine_threadsafe(self._ask(scopes, options), self._running())
        try:
            given = asked.result(LIMIT_S)
        except Exception as error:
            asked.cancel()
            self.failure = TokenUnavailable(type(error).__name__, _may_pass(error))
            # Not chained: what a credential says may hold what it was given.
            raise self.failure from None
        self.failure = None
        return given

    async def _ask(self, scopes: tuple[str, ...], options: Any) -> AccessToken:
        if self._credential is None:
            self._credential = self._azure.open_credential()
        return await self._credential.get_token(*scopes, **options)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="azure-tokens", daemon=True
                ).start()
            return self._loop


def _may_pass(error: BaseException) -> bool:
    """Say whether a credential was out of reach, rather than said no."""
    if isinstance(error, TooLate | OSError):
        return True
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

    # CredentialUnavailableError is one of these: nothing is set up, and waiting does not help.
    return isinstance(error, ServiceRequestError) and not isinstance(
        error, ClientAuthenticationError
    )

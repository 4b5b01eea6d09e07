"""Tokens like those of Microsoft Entra ID, for emulators that check claims only."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import ClientAuthenticationError

TENANT = "5bd0e1a6-92a5-4c8b-9d2e-0c6d4f1e7a31"
ISSUER = f"https://sts.windows.net/{TENANT}/"
"""Azurite requires this host and a GUID."""
STORAGE_AUDIENCE = "https://storage.azure.com"
CLOCK_REALTIME_COARSE = 5
"""The number on Linux; Python has no name for it. `tests.chaos.faults.Clock` does not change it."""
GEOCATALOG_AUDIENCE = "https://geocatalog.spatio.azure.com"


def issuers_time() -> float:
    """Return the token issuer's time, which is right even if this process's clock is not."""
    return time.clock_gettime(CLOCK_REALTIME_COARSE)


def make_token(
    audience: str, *, lifetime_s: float = 3600, issuer: str = ISSUER, **claims: Any
) -> str:
    """Return a JSON Web Token, signed with a public key phrase.

    Parameters
    ----------
    audience : str
    lifetime_s : float
        Negative for an expired token.
    issuer : str
    **claims
        Further claims, which override the others.
    """
    now = int(issuers_time())
    payload = {
        "iss": issuer,
        "aud": audience,
        "iat": now - 60,
        "nbf": now - 60,
        "exp": int(now + lifetime_s),
        "tid": TENANT,
        "oid": "00000000-0000-0000-0000-00000000e2e5",
        **claims,
    }
    signed = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(payload)}"
    signature = hmac.new(b"emulator", signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_base64(signature)}"


def read_claims(token: str) -> dict[str, Any]:
    """Return the claims of a token; its signature is not checked.

    Raises
    ------
    ValueError
        If it is not a token.
    """
    _, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if not isinstance(claims, dict):
        raise ValueError("claims must be an object")
    return claims


class EmulatorCredential:
    """An asynchronous token credential that works offline.

    Parameters
    ----------
    lifetime_s : float
        Lifetime of each token.
    refuse : bool
        Whether to fail as a credential of an unknown client does.
    secret : str, optional
        Planted into every token, as a claim and in clear text after the last dot, so that a search
        for it finds leaked tokens.
    cache : bool
        Whether to return the same token for a scope until shortly before it expires, as
        azure-identity does.
    """

    def __init__(
        self,
        *,
        lifetime_s: float = 3600,
        refuse: bool = False,
        secret: str | None = None,
        cache: bool = False,
    ) -> None:
        self.lifetime_s = lifetime_s
        self.refuse = refuse
        self.secret = secret
        self.cache = cache
        self.asked: list[tuple[str, ...]] = []
        """Scopes of every call, in order."""
        self.options: list[dict[str, Any]] = []
        """Keyword arguments of every call, in order."""
        self.closed = False
        self._tokens: dict[str, AccessToken] = {}

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return a token for the audience of the first scope."""
        self.asked.append(scopes)
        self.options.append(options)
        if self.refuse:
            raise ClientAuthenticationError(
                message=f"AADSTS7000215: Invalid client secret provided. {self.secret or ''}"
            )
        audience = audience_of(scopes[0])
        cached = self._tokens.get(audience)
        if self.cache and cached is not None and cached.expires_on > time.time() + 300:
            return cached
        token = make_token(audience, lifetime_s=self.lifetime_s, uti=str(len(self.asked)))
        if self.secret is not None:
            token = make_token(audience, lifetime_s=self.lifetime_s, secret=self.secret)
            token += self.secret
        self._tokens[audience] = AccessToken(token, int(time.time() + self.lifetime_s))
        return self._tokens[audience]

    async def get_token_info(
        self, *scopes: str, options: TokenRequestOptions | None = None
    ) -> AccessTokenInfo:
        """Return the same token in the form that newer clients request."""
        token = await self.get_token(*scopes, **(options or {}))
        return AccessTokenInfo(token.token, token.expires_on)

    async def close(self) -> None:
        """Record that the credential was closed."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.close()


def audience_of(scope: str) -> str:
    """Return the token audience of a scope such as ``https://storage.azure.com/.default``."""
    split = urlsplit(scope)
    return f"{split.scheme}://{split.netloc}"


def _encode(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

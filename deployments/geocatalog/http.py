"""Send authenticated requests to one GeoCatalog; retry when throttled; never follow redirects."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployments.azure.errors import is_untrusted_certificate
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.geocatalog.responses import describe_response, quote_text
from deployments.runtime.failures import TransientFailure
from deployments.runtime.retries import Backoff, RetryPolicy, parse_retry_after
from workflows.errors import IngestionFailed
from workflows.execution import Stage

# Imported where they are used: without deliveries to a GeoCatalog they are not installed.
if TYPE_CHECKING:
    import httpx
    from azure.core.credentials_async import AsyncTokenCredential

BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that are retried. All requests are idempotent."""
REQUEST = RetryPolicy(attempts=6, initial_delay_s=1.0, jitter=0.5)
CONNECT_TIMEOUT_S = 10.0
_AADSTS = re.compile(r"\bAADSTS\d+")
"""Error code of Microsoft Entra ID."""
_CLAIMS = re.compile(r'\bclaims="([^"]+)"')


class Deadline:
    """The time limit of one call, which may send several requests; the clock returns seconds."""

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._started = clock()

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def is_over(self) -> bool:
        """Whether the time limit has passed."""
        return self.used_s > self._limit_s

    def backoff(self, policy: RetryPolicy) -> Backoff:
        """Return the delays of a policy, which ends at this deadline."""
        return Backoff(replace(policy, deadline_s=self._limit_s - self.used_s), clock=self._clock)


class _NoResponse(Exception):
    """There was no response to a request."""


class GeoCatalogHttp:
    """Sends requests to one catalogue.

    Each request gets its token from the credential, which caches it: tokens expire in long waits.
    """

    def __init__(
        self,
        url: str,
        credential: AsyncTokenCredential,
        options: GeoCatalogOptions,
        *,
        transport: httpx.AsyncBaseTransport | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        import httpx

        self._base = httpx.URL(url)
        self._credential = credential
        self._options = options
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            verify=options.azure.tls(),
            transport=transport,
            timeout=httpx.Timeout(options.request_timeout_s, connect=CONNECT_TIMEOUT_S),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def send(
        self,
        method: str,
        url: str | httpx.URL,
        deadline: Deadline,
        document: Any = None,
        *,
        expected: Collection[int] = (),
    ) -> httpx.Response:
        """Send a request until there is a response.

        Parameters
        ----------
        url : str or URL
            A string is a path below the catalogue's own.
        document : optional
            Sent as JSON.
        expected : collection of int
            Statuses of errors that are returned to the caller.

        Raises
        ------
        TransientFailure
            If the catalogue stays busy or unreachable.
        IngestionFailed
            If it refuses or redirects.
        """
        if isinstance(url, str):
            folder = self._base.raw_path.rstrip(b"/")
            url = self._base.copy_with(raw_path=folder + url.encode())
        url = url.copy_set_param("api-version", self._options.api_version)
        request = f"{method} {url.path}"
        backoff = deadline.backoff(REQUEST)
        while True:
            requested_s = None
            try:
                response = await self._send_authorized(method, url, document)
                if response.status_code not in BUSY:
                    return _checked(request, response, expected)
                requested_s = parse_retry_after(response.headers.get("retry-after"))
                problem = f"{request} was answered {describe_response(response)}"
            except _NoResponse as error:
                problem = f"{request} was not answered: {error}"
            delay_s = backoff.next_delay_s(requested_s)
            if delay_s is None:
                raise TransientFailure(
                    Stage.REGISTER, f"{problem}; given up after {backoff.attempts} requests"
                ) from None
            await self._sleep(delay_s)

    async def _send_authorized(self, method: str, url: httpx.URL, document: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                token = await self._token()
                response = await self._send_once(method, url, document, token)
                if response.status_code == 401:
                    # The token was revoked or expired on the way.
                    token = await self._token(_requested_claims(response))
                    response = await self._send_once(method, url, document, token)
                return response
        except TimeoutError:
            raise _NoResponse(f"not within {self._options.request_timeout_s:g} s") from None

    async def _send_once(
        self, method: str, url: httpx.URL, document: Any, token: str
    ) -> httpx.Response:
        import httpx

        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        try:
            return await self._client.request(method, url, json=document, headers=headers)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError) as error:
            reason = f"{method} {url.path} cannot be sent: {type(error).__name__}"
            raise IngestionFailed(Stage.REGISTER, reason) from None
        except httpx.TransportError as error:
            problem = quote_text(f"{type(error).__name__}: {error}".removesuffix(": "))
            if is_untrusted_certificate(error):
                raise IngestionFailed(
                    Stage.REGISTER, f"{self._base.host} is not trusted: {problem}"
                ) from None
            raise _NoResponse(problem) from None

    async def _token(self, claims: str | None = None) -> str:
        from azure.core.exceptions import ServiceRequestError, ServiceResponseError

        scope = self._options.scope
        try:
            return (await self._credential.get_token(scope, claims=claims)).token
        except (ServiceRequestError, ServiceResponseError) as error:
            raise _NoResponse(f"no token, {type(error).__name__}") from None
        except Exception as error:
            # Any class, and not chained: a credential's error may quote its own arguments.
            code = "".join(f" ({code})" for code in _AADSTS.findall(str(error))[:1])
            raise IngestionFailed(
                Stage.REGISTER,
                f"this server got no token for {scope}: {type(error).__name__}{code}",
            ) from None

    def operation_url(self, response: httpx.Response) -> httpx.URL:
        """Return the URL of the operation that a response started.

        Raises IngestionFailed if there is none, or if it does not belong to this catalogue: a
        request to it would reveal the token.
        """
        import httpx

        location = response.headers.get("operation-location") or response.headers.get("location")
        accepted = f"{response.request.method} {response.request.url.path} was accepted"
        if not location:
            raise IngestionFailed(Stage.REGISTER, f"{accepted} without a Location of its operation")
        try:
            url = response.request.url.join(location)
        except (httpx.InvalidURL, ValueError):
            raise IngestionFailed(
                Stage.REGISTER, f"{accepted} with a Location that is no URL"
            ) from None
        if _origin(url) != _origin(self._base) or url.userinfo:
            raise IngestionFailed(
                Stage.REGISTER,
                f"{accepted} with a Location on another host, "
                f"{quote_text(url.host) or 'without a name'}; nothing was sent there",
            )
        # The catalogue may share its host with others, behind a gateway.
        folder = f"{self._base.path.rstrip('/')}/inma/"
        if not url.path.startswith(folder) or ".." in url.path.split("/"):
            raise IngestionFailed(
                Stage.REGISTER,
                f"{accepted} with a Location that is no operation: {quote_text(url.path)}",
            )
        return url


def _checked(request: str, response: httpx.Response, expected: Collection[int]) -> httpx.Response:
    if response.is_success or response.status_code in expected:
        return response
    if response.is_redirect:
        raise IngestionFailed(
            Stage.REGISTER,
            f"{request} was answered {response.status_code}, a redirect, which is not followed",
        )
    raise IngestionFailed(Stage.REGISTER, f"{request} was answered {describe_response(response)}")


def _requested_claims(response: httpx.Response) -> str | None:
    """Return the claims that a refusal requires (continuous access evaluation), if any."""
    challenge = _CLAIMS.search(response.headers.get("www-authenticate", ""))
    if challenge is None:
        return None
    encoded = challenge[1]
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port

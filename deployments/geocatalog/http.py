"""Requests to one GeoCatalog: with a token, never further than it, again while it is busy."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

from deployments.geocatalog.responses import in_short, retry_after_s, told
from deployments.runtime.failures import TransientFailure
from workflows.errors import IngestionFailed
from workflows.execution import Stage

# Imported where they are used: without deliveries nobody needs them.
if TYPE_CHECKING:
    import httpx
    from azure.core.credentials_async import AsyncTokenCredential

BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may pass. What is sent may be sent again: nothing is made twice."""
ATTEMPTS = 6
CONNECT_S = 10.0
_AADSTS = re.compile(r"\bAADSTS\d+")
_CLAIMS = re.compile(r'\bclaims="([^"]+)"')

# Jitter is no secret, but this needs no excuse.
_uniform = secrets.SystemRandom().uniform


class TimeLimit:
    """What is left of the time for a piece of work.

    Parameters
    ----------
    limit_s : float
    clock : callable
        Gives seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._started = clock()

    @property
    def used_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def allows(self, pause_s: float) -> bool:
        """Say whether there is time for a pause."""
        return self.used_s + pause_s <= self._limit_s


class _OutOfReach(Exception):
    """A request that got no answer."""


class GeoCatalogHttp:
    """Sends requests to one catalogue.

    Parameters
    ----------
    url : str
        Of the catalogue, without a slash at its end.
    credential : AsyncTokenCredential
        Asked before each request: it caches, and what was given before a long wait has expired.
    api_version : str
    scope : str
        What tokens are asked for.
    verify : SSLContext or bool
    request_limit_s : float
        For one answer, however slowly it drips.
    transport : httpx.AsyncBaseTransport, optional
    sleep : callable
    """

    def __init__(
        self,
        url: str,
        credential: AsyncTokenCredential,
        *,
        api_version: str,
        scope: str,
        verify: ssl.SSLContext | bool,
        request_limit_s: float,
        transport: httpx.AsyncBaseTransport | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        import httpx

        self._base = httpx.URL(url)
        self._credential = credential
        self._api_version = api_version
        self._scope = scope
        self._request_limit_s = request_limit_s
        self._sleep = sleep
        self._client = httpx.AsyncClient(
            verify=verify,
            transport=transport,
            timeout=httpx.Timeout(request_limit_s, connect=CONNECT_S),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def send(
        self,
        method: str,
        url: str | httpx.URL,
        limit: TimeLimit,
        document: Any = None,
        *,
        expected: Collection[int] = (),
    ) -> httpx.Response:
        """Send a request until it is answered.

        Parameters
        ----------
        method : str
        url : str or URL
            A string is a path below the catalogue's own.
        limit : TimeLimit
        document : optional
            Sent as JSON.
        expected : collection of int
            Statuses without success that are an answer to the caller.

        Raises
        ------
        TransientFailure
            If the catalogue stays busy or out of reach.
        IngestionFailed
            If it refuses, or wants to send us elsewhere.
        """
        if isinstance(url, str):
            folder = self._base.raw_path.rstrip(b"/")
            url = self._base.copy_with(raw_path=folder + url.encode())
        url = url.copy_set_param("api-version", self._api_version)
        what = f"{method} {url.path}"
        for attempt in range(ATTEMPTS):
            asked_s = None
            try:
                answer = await self._authorized(method, url, document)
                if answer.status_code not in BUSY:
                    return _checked(what, answer, expected)
                asked_s = retry_after_s(answer)
                trouble = f"{what} was answered {told(answer)}"
            except _OutOfReach as error:
                trouble = f"{what} got no answer: {error}"
            # More than was asked for, each client its own: those that were turned away together
            # shall not come back together.
            pause_s = (2.0**attempt if asked_s is None else asked_s) * _uniform(1.0, 1.5)
            if attempt + 1 == ATTEMPTS or not limit.allows(pause_s):
                break
            await self._sleep(pause_s)
        raise TransientFailure(
            Stage.REGISTER, f"{trouble}; given up after {attempt + 1} requests"
        ) from None

    async def _authorized(self, method: str, url: httpx.URL, document: Any) -> httpx.Response:
        try:
            async with asyncio.timeout(self._request_limit_s):
                answer = await self._once(method, url, document, await self._token())
                if answer.status_code == 401:
                    # Revoked, or expired on the way.
                    token = await self._token(_claims_asked_for(answer))
                    answer = await self._once(method, url, document, token)
                return answer
        except TimeoutError:
            raise _OutOfReach(f"not within {self._request_limit_s:g} s") from None

    async def _once(self, method: str, url: httpx.URL, document: Any, token: str) -> httpx.Response:
        import httpx

        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        try:
            return await self._client.request(method, url, json=document, headers=headers)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError) as error:
            reason = f"{method} {url.path} cannot be sent: {type(error).__name__}"
            raise IngestionFailed(Stage.REGISTER, reason) from None
        except httpx.TransportError as error:
            words = in_short(f"{type(error).__name__}: {error}".removesuffix(": "))
            if "CERTIFICATE_VERIFY_FAILED" in words:
                raise IngestionFailed(
                    Stage.REGISTER, f"{self._base.host} is not trusted: {words}"
                ) from None
            raise _OutOfReach(words) from None

    async def _token(self, claims: str | None = None) -> str:
        from azure.core.exceptions import ServiceRequestError, ServiceResponseError

        try:
            return (await self._credential.get_token(self._scope, claims=claims)).token
        except (ServiceRequestError, ServiceResponseError) as error:
            raise _OutOfReach(f"no token, {type(error).__name__}") from None
        except Exception as error:
            # Whatever it is: what credentials say may quote what they were given.
            code = "".join(f" ({found})" for found in _AADSTS.findall(str(error))[:1])
            raise IngestionFailed(
                Stage.REGISTER,
                f"no token for {self._scope} was given to this server: "
                f"{type(error).__name__}{code}",
            ) from None

    def named_by(self, answer: httpx.Response) -> httpx.URL:
        """Give the URL of the operation that an answer names.

        Raises
        ------
        IngestionFailed
            If there is none, or it lies elsewhere: a request to it would hand over our token.
        """
        import httpx

        named = answer.headers.get("operation-location") or answer.headers.get("location")
        what = f"{answer.request.method} {answer.request.url.path}"
        if not named:
            raise IngestionFailed(
                Stage.REGISTER, f"{what} was accepted without a Location of its operation"
            )
        try:
            url = answer.request.url.join(named)
        except (httpx.InvalidURL, ValueError):
            raise IngestionFailed(
                Stage.REGISTER, f"{what} was accepted with a Location that is no URL"
            ) from None
        if _origin(url) != _origin(self._base) or url.userinfo:
            raise IngestionFailed(
                Stage.REGISTER,
                f"{what} was accepted with a Location on another host, "
                f"{in_short(url.host) or 'without a name'}; nothing was sent there",
            )
        # The catalogue may share its host with others, behind a gateway.
        folder = f"{self._base.path.rstrip('/')}/inma/"
        if not url.path.startswith(folder) or ".." in url.path.split("/"):
            raise IngestionFailed(
                Stage.REGISTER,
                f"{what} was accepted with a Location that is no operation: {in_short(url.path)}",
            )
        return url


def _checked(what: str, answer: httpx.Response, expected: Collection[int]) -> httpx.Response:
    if answer.is_success or answer.status_code in expected:
        return answer
    if answer.is_redirect:
        raise IngestionFailed(
            Stage.REGISTER,
            f"{what} was answered {answer.status_code}, a redirect; the token goes nowhere else",
        )
    raise IngestionFailed(Stage.REGISTER, f"{what} was answered {told(answer)}")


def _claims_asked_for(answer: httpx.Response) -> str | None:
    """Read the claims that a refusal asks for (continuous access evaluation), if any."""
    challenge = _CLAIMS.search(answer.headers.get("www-authenticate", ""))
    if challenge is None:
        return None
    encoded = challenge[1]
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port

"""Calls to Blob Storage: which are tried again, when, and what is said when none helped.

The clients' own retries are switched off: azure-storage-blob's takes 429 for a refusal and heeds no
Retry-After, and none knows what the others are told.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.azure.token import TokenUnavailable
from deployments.runtime.failures import TransientFailure, sanitize
from workflows.delivery import Container
from workflows.errors import Earth2ServeError, StageFailed, UploadFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    from azure.core.exceptions import HttpResponseError

T = TypeVar("T")

BUSY = (408, 429, 500, 502, 503, 504)
_LONGEST_MESSAGE = 200
_SECRETIVE = re.compile(r"https?://\S+|\S*\?\S*=\S*|Bearer\s+\S+|eyJ\S+", re.IGNORECASE)
"""URLs, queries and tokens, which a service may quote."""
_WHAT_TO_DO = {
    "ContainerNotFound": "make the container first",
    "ContainerBeingDeleted": "the container is being deleted; make it again",
    "AccountIsDisabled": "the storage account is disabled",
}
CONTRIBUTOR = "Storage Blob Data Contributor on the container"
DELEGATOR = "Storage Blob Delegator on the storage account"


class Attempts:
    """Tries calls again while that may help.

    Parameters
    ----------
    container : Container
        What is called, for messages.
    most : int
        Tries of one call.
    pause_s, longest_pause_s : float
        Pauses double from the first to the second; each is drawn anew from its upper half, so that
        those who failed together do not come back together.
    """

    def __init__(
        self, container: Container, *, most: int, pause_s: float, longest_pause_s: float
    ) -> None:
        self._container = container
        self._most = most
        self._pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._not_before = 0.0

    async def turn(self) -> None:
        """Wait while the service has asked for a pause, whoever of us it told."""
        # It may be told again meanwhile.
        while (wait_s := self._not_before - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)

    async def __call__(self, call: Callable[[], Awaitable[T]], role: str = CONTRIBUTOR) -> T:
        """Make a call, as often as needed and allowed.

        Parameters
        ----------
        call : callable
        role : str
            What this server's identity needs for it.

        Raises
        ------
        UploadFailed
            If it was refused.
        TransientFailure
            If the service was busy or out of reach each time.
        """
        for tried in range(1, self._most + 1):
            await self.turn()
            try:
                return await call()
            except Earth2ServeError:
                raise
            except Exception as error:
                # Not chained: the clients' errors name URLs and hold requests, tokens included.
                if tried == self._most or not may_pass(error):
                    raise described(error, self._container, role) from None
                asked_s = _asked_pause_s(error)
            pause_s = min(self._pause_s * 2 ** (tried - 1), self._longest_pause_s)
            pause_s *= random.uniform(0.5, 1.0)  # noqa: S311
            if asked_s is not None:
                pause_s = max(pause_s, min(asked_s, self._longest_pause_s))
                now = asyncio.get_running_loop().time()
                self._not_before = max(self._not_before, now + pause_s)
            await asyncio.sleep(pause_s)
        raise AssertionError("at least one try is allowed")


def may_pass(error: Exception) -> bool:
    """Say whether the same call may succeed in a moment."""
    from azure.core.exceptions import (
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    if isinstance(error, TokenUnavailable):
        return error.may_pass
    if isinstance(error, HttpResponseError):
        return error.status_code in (None, *BUSY) or code_of(error) == "Md5Mismatch"
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return not _is_untrusted(error)
    return isinstance(error, ConnectionError | TimeoutError)


def described(error: Exception, container: Container, role: str) -> StageFailed:
    """Say what went wrong and what can be done about it, for whoever asked for the forecast."""
    from azure.core.exceptions import AzureError, HttpResponseError

    kind = TransientFailure if may_pass(error) else UploadFailed
    where = f"container {container.name} of storage account {container.account}"
    if isinstance(error, TokenUnavailable):
        reason = str(error)
    elif isinstance(error, HttpResponseError) and error.status_code is not None:
        reason = f"{where} answered {_answer(error, role)}"
    elif isinstance(error, AzureError) and _is_untrusted(error):
        reason = f"{where}: its certificate is not trusted; see args.azure.ca_file"
    else:
        cause = type(getattr(error, "inner_exception", None) or error).__name__
        is_away = isinstance(error, AzureError | OSError)
        reason = f"{where} {'is out of reach' if is_away else 'was called in vain'} ({cause})"
    return kind(Stage.UPLOAD, sanitize(reason))


def code_of(error: HttpResponseError) -> str | None:
    """Give Azure's own code for an error; None if the answer had none."""
    headers = getattr(error.response, "headers", {})
    # azure-storage-blob finds it in the answer's body as well.
    code: Any = headers.get("x-ms-error-code") or getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    return code if re.fullmatch(r"\w{1,64}", code) else None


def _answer(error: HttpResponseError, role: str) -> str:
    code = code_of(error)
    said = " ".join(filter(None, (str(error.status_code), code)))
    # Without a code it was not Blob Storage that answered, but something in between.
    if code is not None:
        message = _SECRETIVE.sub("…", str(error.message).strip().partition("\n")[0])
        said = f"{said}: {message[:_LONGEST_MESSAGE]}"
    if (advice := _WHAT_TO_DO.get(code or "")) is None:
        if error.status_code not in (401, 403):
            return said
        advice = (
            f"give this server's identity the role {role}, and see whether the account's firewall "
            "lets it in"
        )
    return f"{said.rstrip('. ')}; {advice}"


def _asked_pause_s(error: Exception) -> float | None:
    """Give the pause that a busy service asks for; 0 if it asks for one without saying how long."""
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (429, 503):
        return None
    try:
        # The other form, a date, is worth no parser: Blob Storage does not use it.
        return float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0


def _is_untrusted(error: Exception) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)

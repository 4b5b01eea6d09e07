"""Translate errors of Blob Storage and of its clients into our own.

The clients' messages name URLs and quote requests, tokens included. Only the status, Azure's code
for the error and its redacted message are kept, and the original is never chained.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.azure.token import TokenUnavailable
from deployments.runtime.failures import TransientFailure, redact
from deployments.runtime.retries import parse_retry_after
from workflows.delivery import Container
from workflows.errors import StageFailed, UploadFailed
from workflows.execution import Stage

if TYPE_CHECKING:
    from azure.core.rest import HttpResponse

CONTRIBUTOR = "Storage Blob Data Contributor on the container"
DELEGATOR = "Storage Blob Delegator on the storage account"
_MAX_MESSAGE = 200
_CREATE = "create the container first"
_ADVICE = {
    "ContainerNotFound": _CREATE,
    "ContainerDisabled": _CREATE,
    "ContainerBeingDeleted": "the container is being deleted; create it again",
    "AccountIsDisabled": "the storage account is disabled",
}
# obstore's errors carry nothing but text, which quotes the service's answer.
_STATUS = re.compile(r"(?:status code: |\(code: )(\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)")
_UNTRUSTED = re.compile(r"InvalidCertificate\(")


class BlobUnavailable(TransientFailure):
    """Blob Storage is busy or unreachable.

    Parameters
    ----------
    stage, reason : str
    retry_after_s : float or None
        Delay that the service asks all callers for; 0 if it does not say how long.
    """

    def __init__(self, stage: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(stage, reason)
        self.args = (stage, reason, retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class BlobError:
    """What is known of a failed request."""

    cause: str
    """Class of the client's error."""
    status: int | None = None
    """None if there was no answer."""
    code: str | None = None
    """Azure's code for the error; None if something else answered, such as a proxy."""
    message: str = ""
    retry_after: str | None = None
    is_untrusted: bool = False
    """Whether the server's certificate is not trusted."""
    token_failure: TokenUnavailable | None = None

    @classmethod
    def of_obstore(cls, error: Exception, token_failure: TokenUnavailable | None) -> BlobError:
        """Return what an error of obstore says.

        Parameters
        ----------
        error : Exception
        token_failure : TokenUnavailable or None
            Why there was no token, which obstore does not pass on.
        """
        text = str(error)
        status, code, message = (each.search(text) for each in (_STATUS, _CODE, _MESSAGE))
        return cls(
            cause=type(error).__name__,
            status=int(status[1]) if status else None,
            code=code[1] if code else None,
            message=message[1] if message else "",
            # An answer may have anything in its body.
            is_untrusted=status is None and _UNTRUSTED.search(text) is not None,
            token_failure=token_failure,
        )

    @classmethod
    def of_response(cls, response: HttpResponse) -> BlobError:
        """Return what an answer of Blob Storage says."""
        code = response.headers.get("x-ms-error-code", "")
        message = _MESSAGE.search(response.text())
        return cls(
            cause="HttpResponseError",
            status=response.status_code,
            code=code if re.fullmatch(r"\w{1,64}", code) else None,
            message=message[1] if message else "",
            retry_after=response.headers.get("Retry-After"),
        )

    @classmethod
    def of_client(cls, error: Exception) -> BlobError:
        """Return what an error of azure-core or of the credential says when there was no answer."""
        cause = getattr(error, "inner_exception", None) or error
        return cls(
            cause=type(cause).__name__,
            is_untrusted=is_untrusted_certificate(error),
            token_failure=error if isinstance(error, TokenUnavailable) else None,
        )

    @property
    def is_container_missing(self) -> bool:
        """Whether the container does not exist."""
        return _ADVICE.get(self.code or "") == _CREATE

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        if self.token_failure is not None:
            return self.token_failure.is_transient
        if self.status is None:
            return not self.is_untrusted
        return self.status in (408, 409, 429) or self.status >= 500 or self.code == "Md5Mismatch"

    def as_stage_failure(
        self, container: Container, stage: str, role: str = CONTRIBUTOR
    ) -> StageFailed:
        """Return the error to raise.

        Parameters
        ----------
        container : Container
        stage : str
        role : str
            Role that this server's identity needs for the request.

        Returns
        -------
        StageFailed
            BlobUnavailable if another attempt may succeed; UploadFailed if it is the upload's.
        """
        reason = self._describe(container, role)
        if not self.is_transient:
            return (UploadFailed if stage == Stage.UPLOAD else StageFailed)(stage, reason)
        retry_after_s = None
        if self.status in (429, 503):
            retry_after_s = parse_retry_after(self.retry_after) or 0.0
        return BlobUnavailable(stage, reason, retry_after_s)

    def _describe(self, container: Container, role: str) -> str:
        """Return what went wrong and what can be done about it."""
        if self.token_failure is not None:
            return str(self.token_failure)
        where = f"container {container.name} of storage account {container.account}"
        if self.is_untrusted:
            return f"{where} shows a certificate that is not trusted: check args.azure.ca_file"
        if self.status is None:
            return f"{where} is unreachable ({self.cause})"
        answer = " ".join(str(each) for each in (self.status, self.code) if each)
        message = self.message.strip().partition("\n")[0]
        if self.code and message:
            answer = f"{answer}: {redact(message, _MAX_MESSAGE)}"
        advice = _ADVICE.get(self.code or "")
        if advice is None and self.status in (401, 403):
            advice = (
                f"this server's identity needs the role {role}, and the account's firewall has "
                "to let it in"
            )
        return f"{where} answered {answer.rstrip('. ')}" + (f"; {advice}" if advice else "")


def is_untrusted_certificate(error: BaseException) -> bool:
    """Return whether a request failed because the server's certificate is not trusted."""
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it, also where a library keeps them as attributes."""
    pending, seen = [error], set()
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        linked = (
            each.__cause__,
            each.__context__,
            getattr(each, "inner_exception", None),
            getattr(each, "reason", None),
            *each.args,
        )
        pending += (found for found in linked if isinstance(found, BaseException))

"""Translate errors of Blob Storage and of its clients into errors of this project.

The clients' messages name URLs and quote requests, tokens included. Only the status, Azure's code
for the error and its redacted message are kept, and the original is never chained.
"""

from __future__ import annotations

import re
import ssl
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
# obstore's errors carry only text, which quotes the response.
_STATUS = re.compile(r"(?:status code: |\(code: )(\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)")
_UNTRUSTED = re.compile(r"InvalidCertificate\(")


class BlobUnavailable(TransientFailure):
    """Blob Storage is busy or unreachable.

    `retry_after_s` is the delay that the service requests of all callers; 0 if it does not say how
    long, None if it requests none.
    """

    def __init__(self, stage: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(stage, reason)
        self.args = (stage, reason, retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class BlobError:
    """A failed request."""

    cause: str
    status: int | None = None
    """None if there was no response."""
    code: str | None = None
    """Azure's code for the error; None in the response of anything else, such as a proxy."""
    message: str = ""
    retry_after: str | None = None
    is_untrusted: bool = False
    token_failure: TokenUnavailable | None = None

    @classmethod
    def of_obstore(cls, error: Exception, token_failure: TokenUnavailable | None) -> BlobError:
        """Parse an error of obstore, which does not pass on why there was no token."""
        text = str(error)
        status, code, message = (each.search(text) for each in (_STATUS, _CODE, _MESSAGE))
        return cls(
            cause=type(error).__name__,
            status=int(status[1]) if status else None,
            code=code[1] if code else None,
            message=message[1] if message else "",
            # The body of a response may contain anything.
            is_untrusted=status is None and _UNTRUSTED.search(text) is not None,
            token_failure=token_failure,
        )

    @classmethod
    def of_response(cls, response: HttpResponse) -> BlobError:
        """Parse an error response of Blob Storage."""
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
        """Convert an error of azure-core or of the credential when there was no response."""
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

        It is BlobUnavailable if another attempt may succeed, and else UploadFailed in the upload
        stage. Its text names the role that this server's identity needs.
        """
        reason = self._describe(container, role)
        if not self.is_transient:
            return (UploadFailed if stage == Stage.UPLOAD else StageFailed)(stage, reason)
        retry_after_s = None
        if self.status in (429, 503):
            retry_after_s = parse_retry_after(self.retry_after) or 0.0
        return BlobUnavailable(stage, reason, retry_after_s)

    def _describe(self, container: Container, role: str) -> str:
        """Return the cause and, where there is one, the remedy."""
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
    pending, seen = [error], set()
    while pending:
        each = pending.pop()
        if isinstance(each, ssl.SSLCertVerificationError):
            return True
        if id(each) in seen:
            continue
        seen.add(id(each))
        # Libraries also keep causes as attributes.
        linked = (
            each.__cause__,
            each.__context__,
            getattr(each, "inner_exception", None),
            getattr(each, "reason", None),
            *each.args,
        )
        pending += (found for found in linked if isinstance(found, BaseException))
    return False

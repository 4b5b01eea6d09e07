"""Translation of errors of Blob Storage's clients."""

from __future__ import annotations

import pickle
import ssl
from typing import Any

import pytest
from azure.core.exceptions import ServiceRequestError
from requests.exceptions import SSLError
from urllib3.exceptions import MaxRetryError
from urllib3.exceptions import SSLError as PoolSSLError

from deployments.azure.errors import (
    DELEGATOR,
    BlobError,
    BlobUnavailable,
    is_untrusted_certificate,
)
from deployments.azure.token import TokenUnavailable
from workflows.delivery import Container
from workflows.errors import StageFailed, UploadFailed

CONTAINER = Container(
    account_url="https://account.blob.core.windows.net", account="account", name="results"
)
SECRET = "pl4nted"


class Response:
    """An answer, as azure-core returns it."""

    def __init__(self, status: int, headers: dict[str, str], body: str) -> None:
        self.status_code = status
        self.headers = headers
        self._body = body

    def text(self) -> str:
        return self._body


def answered(status: int, code: str | None = None, message: str = "", **headers: str) -> BlobError:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if code is not None:
        headers["x-ms-error-code"] = code
    response: Any = Response(status, headers, f"<Error><Message>{message}</Message></Error>")
    return BlobError.of_response(response)


def obstore_says(text: str) -> BlobError:
    return BlobError.of_obstore(Exception(text), None)


@pytest.mark.parametrize(
    ("text", "status", "code", "message"),
    [
        (
            "… non-2xx status code: 403 Forbidden: …<Code>AuthFailed</Code><Message>No.</Message>",
            403,
            "AuthFailed",
            "No.",
        ),
        ("Bulk delete request failed for key a/b: no. (code: 403)", 403, None, ""),
        ("HTTP error: error sending request", None, None, ""),
    ],
)
def test_errors_of_obstore_are_parsed(
    text: str, status: int | None, code: str | None, message: str
) -> None:
    error = obstore_says(text)
    assert (error.status, error.code, error.message) == (status, code, message)


def test_only_a_certificate_that_obstore_rejects_is_untrusted() -> None:
    """Its text names the URL, and a container may have any name."""
    url = "https://c.blob.net/certificates/a"
    assert not obstore_says(f"non-2xx status code: 503 at {url}").is_untrusted
    assert not obstore_says(f"error sending request for url ({url}): refused").is_untrusted
    untrusted = obstore_says("error sending request: InvalidCertificate(UnknownIssuer)")
    failure = untrusted.as_stage_failure(CONTAINER, "package")
    assert type(failure) is StageFailed
    assert "args.azure.ca_file" in str(failure)


def requests_error(cause: Exception) -> ServiceRequestError:
    """Return an error as requests and azure-core wrap it."""
    wrapped = SSLError(MaxRetryError(None, "/", PoolSSLError(cause)))  # type: ignore[arg-type]
    return ServiceRequestError(wrapped, error=wrapped)


def test_only_a_certificate_that_openssl_rejects_is_untrusted() -> None:
    assert is_untrusted_certificate(requests_error(ssl.SSLCertVerificationError("no")))
    assert not is_untrusted_certificate(requests_error(ssl.SSLEOFError("CERTIFICATE_VERIFY")))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 599])
def test_busy_services_are_transient(status: int) -> None:
    failure = answered(status).as_stage_failure(CONTAINER, "upload")
    assert type(failure) is BlobUnavailable
    assert str(failure) == f"container results of storage account account answered {status}"


@pytest.mark.parametrize(
    ("status", "headers", "retry_after_s"),
    [
        (503, {"Retry_After": "7"}, 7.0),
        (429, {}, 0.0),
        (503, {"Retry_After": "soon"}, 0.0),
        (500, {"Retry_After": "7"}, None),
    ],
)
def test_only_a_throttling_service_delays_all_callers(
    status: int, headers: dict[str, str], retry_after_s: float | None
) -> None:
    failure = answered(status, **headers).as_stage_failure(CONTAINER, "upload")
    assert isinstance(failure, BlobUnavailable)
    assert failure.retry_after_s == retry_after_s
    copy = pickle.loads(pickle.dumps(failure))
    assert (copy.stage, copy.reason, copy.retry_after_s) == (*failure.args[:2], retry_after_s)


def test_a_body_damaged_on_its_way_is_transient() -> None:
    failure = answered(400, "Md5Mismatch").as_stage_failure(CONTAINER, "upload")
    assert type(failure) is BlobUnavailable


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (404, "ContainerNotFound", "create the container first"),
        (403, "AuthorizationFailure", "needs the role Storage Blob Delegator"),
        (409, "ContainerBeingDeleted", "create it again"),
        (403, "AccountIsDisabled", "the storage account is disabled"),
    ],
)
def test_refusals_come_with_advice(status: int, code: str, advice: str) -> None:
    failure = answered(status, code).as_stage_failure(CONTAINER, "upload", DELEGATOR)
    assert f"answered {status} {code}" in str(failure) and advice in str(failure)


@pytest.mark.parametrize(("stage", "kind"), [("upload", UploadFailed), ("package", StageFailed)])
def test_the_stage_decides_the_class_of_a_refusal(stage: str, kind: type[StageFailed]) -> None:
    failure = answered(400).as_stage_failure(CONTAINER, stage)
    assert type(failure) is kind and failure.stage == stage


def test_messages_are_redacted() -> None:
    message = (
        f"Not you: https://a.b/c?sig={SECRET} sig?x={SECRET}, Bearer {SECRET}, eyJ{SECRET}\n"
        f"RequestId: {SECRET}"
    )
    text = str(answered(403, "Forbidden", message).as_stage_failure(CONTAINER, "upload"))
    assert "403 Forbidden: Not you: [removed]" in text
    assert SECRET not in text and "https://" not in text


def test_messages_of_proxies_are_left_out() -> None:
    text = str(answered(502, None, "internal.example").as_stage_failure(CONTAINER, ""))
    assert text.endswith("answered 502")


@pytest.mark.parametrize("is_transient", [True, False])
def test_a_missing_token_comes_first(is_transient: bool) -> None:
    missing = TokenUnavailable("CredentialError", is_transient)
    for error in (BlobError.of_client(missing), BlobError.of_obstore(Exception(), missing)):
        failure = error.as_stage_failure(CONTAINER, "upload")
        assert type(failure) is (BlobUnavailable if is_transient else UploadFailed)
        assert str(failure) == str(missing)


def test_without_an_answer_the_cause_is_named() -> None:
    error = ServiceRequestError("…", error=ConnectionRefusedError("https://internal"))
    failure = BlobError.of_client(error).as_stage_failure(CONTAINER, "upload")
    assert type(failure) is BlobUnavailable
    assert str(failure).endswith("is unreachable (ConnectionRefusedError)")

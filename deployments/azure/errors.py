"""What Blob Storage says when it does not do what it is asked, in our words.

Its clients' own messages name URLs and quote requests, so nothing of them is passed on but the
status and Azure's code for the error.
"""

from __future__ import annotations

import re

from deployments.azure.token import TokenUnavailable
from deployments.runtime.failures import TransientFailure
from workflows.errors import StageFailed
from workflows.execution import Stage

_STATUS = re.compile(r"(?:status code: |\(code: )(\d{3})")
"""The second is what it says of one of many that are removed at once."""
_UNTRUSTED = re.compile(r"InvalidCertificate\(|certificate verify failed")
"""As rustls and OpenSSL say it."""
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")


def status_and_code(text: str) -> tuple[int | None, str | None]:
    """Find the HTTP status and Azure's code in what obstore says."""
    status, code = _STATUS.search(text), _CODE.search(text)
    return status and int(status[1]), code and code[1]


def is_without_container(code: str | None) -> bool:
    """Say whether it is the container that is missing; one that is being deleted is none yet."""
    return code in ("ContainerNotFound", "ContainerDisabled")


def is_untrusted(status: int | None, text: str) -> bool:
    """Say whether a client got no answer since it does not trust the server's certificate.

    The text may name a URL, which can have any word.
    """
    return status is None and _UNTRUSTED.search(text) is not None


def blob_failure(
    status: int | None,
    code: str | None,
    no_token: TokenUnavailable | None,
    *,
    untrusted: bool = False,
) -> StageFailed:
    """Say what went wrong, and what can be done about it.

    Parameters
    ----------
    status : int or None
        None if there was no answer.
    code : str or None
        Azure's own.
    no_token : NoToken or None
        Why the credential gave no token, if it gave none.
    untrusted : bool
        Whether the server showed a certificate that is not to be trusted.

    Returns
    -------
    StageFailed
        A TransientFailure if another try may succeed.
    """
    if no_token is not None:
        return (TransientFailure if no_token.may_pass else StageFailed)(
            Stage.PACKAGE, str(no_token)
        )
    if untrusted:
        return StageFailed(
            Stage.PACKAGE,
            "Blob Storage shows a certificate that this server does not trust: see to "
            "args.azure.ca_file, or to the authorities that the system trusts",
        )
    said = " ".join(str(each) for each in (status, code) if each)
    if is_without_container(code):
        return StageFailed(
            Stage.PACKAGE,
            f"Blob Storage has no such container ({said}): make the one of args.results_url",
        )
    if status in (401, 403):
        return StageFailed(
            Stage.PACKAGE,
            f"Blob Storage refused ({said}): this server's identity needs the role Storage Blob "
            "Data Contributor on the container of args.results_url, and the account's firewall "
            "has to let it in",
        )
    if status is None or status in (408, 409, 429) or status >= 500:
        return TransientFailure(
            Stage.PACKAGE,
            f"Blob Storage is out of reach or busy ({said or 'no answer'}); if it stays so, see to "
            "the account's name in args.results_url",
        )
    return StageFailed(Stage.PACKAGE, f"Blob Storage refused ({said})")

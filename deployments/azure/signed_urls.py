"""Sign URLs with which anybody can read the blobs of one folder for a limited time."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta

from deployments.azure.options import ContainerOptions
from deployments.azure.rest import RestClient
from deployments.azure.token import TokenBridge
from workflows.errors import UploadFailed
from workflows.execution import Stage

_NAME = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]*")
_MAX_LIFETIME = timedelta(days=7)
"""Lifetime of a user delegation key."""
_CLOCK_SKEW = timedelta(minutes=5)


def sign_folder(
    options: ContainerOptions, token: TokenBridge, folder: str, lifetime_s: float
) -> str:
    """Return a URL that reads the blobs below a folder, over HTTPS only.

    The account needs a hierarchical namespace: others have no signatures for parts of a container.
    Blocks, and makes one attempt.

    Parameters
    ----------
    folder : str
        Not empty: a whole container is not signed.
    lifetime_s : float
        At most 7 days.

    Raises
    ------
    StageFailed
        If Blob Storage refuses.
    UploadFailed
        If the folder or the lifetime is not allowed.
    """
    from azure.storage.blob import generate_blob_sas

    lifetime = timedelta(seconds=lifetime_s)
    if not all(map(_NAME.fullmatch, folder.split("/"))):
        raise UploadFailed(Stage.UPLOAD, f"{folder[:80]!r} is no folder that can be signed")
    if not timedelta(0) < lifetime <= _MAX_LIFETIME:
        raise UploadFailed(Stage.UPLOAD, "a signature is valid for 7 days at most")
    container, name = options.container, options.name_of(folder)
    now = datetime.now(UTC)
    start = now - _CLOCK_SKEW
    expiry = min(now + lifetime, start + _MAX_LIFETIME)
    with closing(RestClient(options, token)) as client:
        key = client.delegation_key(start, expiry)
    query = generate_blob_sas(
        container.account,
        container.name,
        name,
        user_delegation_key=key,
        permission="r",
        expiry=expiry,
        protocol="https",
        is_directory=True,
        sdd=len(name.split("/")),
    )
    return f"{container.account_url}/{container.name}/{name}?{query}"

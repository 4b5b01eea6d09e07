"""One large file as a blob, with Azure's own client.

obstore writes a blob only where there is none in one piece alone, held in memory, and knows no
Content-MD5.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from deployments.azure.errors import blob_failure, is_untrusted
from deployments.azure.token import TokenBridge, TokenUnavailable
from workflows.delivery import Container

BLOCK_BYTES = 8 << 20
MAX_BLOCKS = 40_000
"""A little less than a blob may have."""
AT_ONCE = 4


def digests(path: Path) -> tuple[str, bytes]:
    """Read a file for its SHA-256, and for its MD5, which is what Azure knows."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            sha256.update(piece)
            md5.update(piece)
    return sha256.hexdigest(), md5.digest()


def _retries(limit_s: float) -> int:
    """Say how many pauses there is time for: 1 s, then 1 s and a power of two."""
    retries, pause_s = 0, 1
    while (limit_s := limit_s - pause_s) >= 0:
        retries += 1
        pause_s = 1 + 2**retries
    return retries


def upload(
    path: Path,
    container: Container,
    key: str,
    token: TokenBridge,
    ca_file: Path | None,
    *,
    media_type: str,
    metadata: dict[str, str],
    md5: bytes,
    retry_limit_s: float,
) -> bool:
    """Write a file as a blob unless there is one; says whether this call did.

    Parameters
    ----------
    path : Path
    container : Container
    key : str
        Below the container's folder.
    token : TokenBridge
    ca_file : Path or None
        Certificates of authorities to trust instead of the system's.
    media_type : str
    metadata : dict of str to str
        Kept with the blob.
    md5 : bytes
        Kept as its Content-MD5; each block is checked with one of its own on the way.
    retry_limit_s : float
        How long each call is tried again.

    Raises
    ------
    StageFailed
        If Blob Storage does not take it; TransientFailure if another try may succeed.
    """
    from azure.core.exceptions import AzureError, HttpResponseError, ResourceExistsError
    from azure.storage.blob import BlobClient, ContentSettings, ExponentialRetry

    size = path.stat().st_size
    credential: Any = token
    try:
        with (
            BlobClient(
                container.account_url,
                container.name,
                "/".join(filter(None, (container.prefix, key))),
                credential=credential,
                connection_verify=str(ca_file) if ca_file else True,
                max_block_size=max(BLOCK_BYTES, -(-size // MAX_BLOCKS)),
                retry_policy=ExponentialRetry(
                    initial_backoff=1,
                    increment_base=2,
                    random_jitter_range=1,
                    retry_total=_retries(retry_limit_s),
                ),
            ) as client,
            path.open("rb") as file,
        ):
            client.upload_blob(
                file,
                length=size,
                overwrite=False,
                max_concurrency=AT_ONCE,
                validate_content=True,
                metadata=metadata,
                content_settings=ContentSettings(
                    content_type=media_type, content_md5=bytearray(md5)
                ),
            )
    except ResourceExistsError:
        return False
    except HttpResponseError as error:
        code = getattr(error, "error_code", None)
        raise blob_failure(error.status_code, getattr(code, "value", code), token.failure) from None
    except (AzureError, TokenUnavailable) as error:
        untrusted = is_untrusted(None, str(error))
        raise blob_failure(None, None, token.failure, untrusted=untrusted) from None
    return True

"""The client of one container, against a real Azurite and a flaky proxy."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from deployments.azure.blobs import BLOCK_BYTES, Blobs
from deployments.azure.options import AzureOptions, ContainerOptions, CredentialOptions
from deployments.runtime.failures import TransientFailure
from tests.emulators.azurite import Azurite
from tests.emulators.flaky_proxy import FlakyProxy
from workflows.delivery import Container
from workflows.errors import StageFailed

SECRET = "s3cret-of-the-token"
CREDENTIAL = "tests.emulators.tokens:EmulatorCredential"


def options_for(
    container: Container, ca_file: Path | None, *, retry_limit_s: float = 60.0, **credential: Any
) -> ContainerOptions:
    azure = AzureOptions(
        credential=CredentialOptions(loader=CREDENTIAL, options=credential), ca_file=ca_file
    )
    return ContainerOptions(container=container, azure=azure, retry_limit_s=retry_limit_s)


@pytest.fixture
def blobs(azurite: Azurite, container: Container) -> Blobs:
    return Blobs(options_for(container, azurite.ca_file))


def make_file(path: Path, size: int) -> tuple[Path, str]:
    """Write a file of random bytes; return its path and SHA-256."""
    content = Random(size).randbytes(size)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1000, BLOCK_BYTES + 1, (70 << 20) + 5])
def test_upload_writes_a_file_once(blobs: Blobs, tmp_path: Path, size: int) -> None:
    path, sha256 = make_file(tmp_path / "large.nc", size)
    assert blobs.upload("a/large.nc", path, "application/netcdf", sha256)
    assert not blobs.upload("a/large.nc", path, "application/netcdf", sha256)
    blob, content = blobs.open("a/large.nc", size)
    assert content == path.read_bytes()
    assert blob.sha256 == sha256
    stored, _ = blobs.rest.list_page("a", "")
    assert stored["a/large.nc"].md5 == hashlib.md5(path.read_bytes()).digest()


def test_upload_keeps_the_first_of_two_files(blobs: Blobs, tmp_path: Path) -> None:
    first, second = make_file(tmp_path / "first", 1000), make_file(tmp_path / "second", 1001)
    assert blobs.upload("results.nc", *_arguments(first))
    assert not blobs.upload("results.nc", *_arguments(second))
    assert blobs.get("results.nc") == first[0].read_bytes()


def _arguments(file: tuple[Path, str]) -> tuple[Path, str, str]:
    return file[0], "application/netcdf", file[1]


def test_upload_retries_and_resumes(
    azurite: Azurite, proxied_container: Container, proxy: FlakyProxy, tmp_path: Path
) -> None:
    path, sha256 = make_file(tmp_path / "large.nc", 3 * BLOCK_BYTES)
    impatient = Blobs(options_for(proxied_container, azurite.ca_file, retry_limit_s=3.0))
    proxy.answer(503, "ServerBusy", meant="GET .*blocklisttype", times=2)
    proxy.answer(503, "ServerBusy", meant="PUT .*comp=blocklist$", times=10_000)
    with pytest.raises(TransientFailure, match="503 ServerBusy"):
        impatient.upload("large.nc", path, "application/netcdf", sha256)
    sent = len(proxy.asked("PUT .*comp=block&"))
    assert sent == 3
    direct = proxied_container.model_copy(update={"account_url": azurite.endpoint})
    names = Blobs(options_for(direct, azurite.ca_file)).rest.uncommitted_blocks("large.nc")
    assert len(names) == 3
    assert Blobs(options_for(direct, azurite.ca_file)).upload(
        "large.nc", path, "application/netcdf", sha256
    )


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("no container", "404 ContainerNotFound.*create the container first"),
        ("no token", r"returned no token.*args\.azure\.credential"),
        ("expired", "needs the role Storage Blob Data Contributor"),
    ],
)
def test_upload_reports_refusals(
    azurite: Azurite, container: Container, tmp_path: Path, problem: str, reason: str
) -> None:
    credential: dict[str, Any] = {"secret": SECRET}
    if problem == "no container":
        container = container.model_copy(update={"name": "nobody-made-this"})
    elif problem == "no token":
        credential["refuse"] = True
    else:
        credential["lifetime_s"] = -60
    blobs = Blobs(options_for(container, azurite.ca_file, retry_limit_s=0.3, **credential))
    path, sha256 = make_file(tmp_path / "results.nc", 1000)
    with pytest.raises(StageFailed, match=reason) as failed:
        blobs.upload("results.nc", path, "application/netcdf", sha256)
    assert not isinstance(failed.value, TransientFailure)
    assert SECRET not in repr(failed.value)


def test_an_untrusted_certificate_is_reported(container: Container, tmp_path: Path) -> None:
    blobs = Blobs(options_for(container, None, retry_limit_s=1.0))
    path, sha256 = make_file(tmp_path / "large", 1)
    for ask in (blobs.look, lambda: blobs.upload("k", path, "text/plain", sha256)):
        with pytest.raises(StageFailed, match=r"args\.azure\.ca_file") as failed:
            ask()
        assert not isinstance(failed.value, TransientFailure)


def test_expired_tokens_are_renewed(azurite: Azurite, container: Container) -> None:
    # Shorter than obstore's own margin of five minutes.
    blobs = Blobs(options_for(container, azurite.ca_file, lifetime_s=20))
    for name in "abc":
        blobs.put(name, b"", "text/plain")
        time.sleep(0.15)  # obstore asks at most every 0.1 s
    credential: Any = blobs.token._credential
    assert len(credential.asked) == 3


def test_remove_leaves_nothing(blobs: Blobs) -> None:
    for number in range(5):
        blobs.put(f"a/{number}", b"", "text/plain")
    blobs.put("ab", b"", "text/plain")
    blobs.remove("a")
    assert [key for key, _ in blobs.list("")] == ["ab"]


def test_remove_stops_when_asked_to(blobs: Blobs) -> None:
    blobs.put("a/0", b"", "text/plain")
    blobs.remove("a", lambda: True)
    assert blobs.head("a/0") is not None


def test_remove_retries_a_batch(
    azurite: Azurite, proxied_container: Container, proxy: FlakyProxy, blobs: Blobs
) -> None:
    blobs.put("a/0", b"", "text/plain")
    proxy.answer(503, "ServerBusy", meant="comp=batch", times=2)
    Blobs(options_for(proxied_container, azurite.ca_file, retry_limit_s=0)).remove("a")
    assert blobs.head("a/0") is None

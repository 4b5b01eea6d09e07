"""Validators and conditional requests."""

import os
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve_app.files.conftest import CONTENT, MODIFIED, Write


@pytest.fixture
def validators(client: TestClient) -> tuple[str, str]:
    headers = client.head("/chunk").headers
    return headers["etag"], headers["last-modified"]


def test_validators(client: TestClient, write: Write, validators: tuple[str, str]) -> None:
    etag, last_modified = validators
    assert etag[0] == etag[-1] == '"' and len(etag) > 2
    assert parsedate_to_datetime(last_modified) <= datetime.now(UTC)
    assert client.get("/chunk", headers={"range": "bytes=0-1"}).headers["etag"] == etag

    etags = set()
    for content in (b"one", b"two", b"three"):
        write("other", content)
        assert client.get("/other").content == content
        etags.add(client.head("/other").headers["etag"])
    assert len(etags) == 3


def test_validators_on_disk(disk_client: TestClient, root: Path) -> None:
    last_modified = disk_client.head("/chunk").headers["last-modified"]
    assert parsedate_to_datetime(last_modified) == MODIFIED
    other = root / "other"
    etags = set()
    for content, modified_ns in [(b"one", 0), (b"two", 1), (b"three", 1)]:
        other.write_bytes(content)
        os.utime(other, ns=(modified_ns, modified_ns))
        etags.add(disk_client.head("/other").headers["etag"])
    assert len(etags) == 3


def test_last_modified_is_never_in_the_future(disk_client: TestClient, root: Path) -> None:
    (root / "future").write_bytes(b"x")
    os.utime(root / "future", (time.time() + 10**6,) * 2)
    response = disk_client.head("/future")
    assert parsedate_to_datetime(response.headers["last-modified"]) <= datetime.now(UTC)


def date(offset_s: int) -> str:
    """Return a placeholder for a date at an offset to the last modification."""
    return f"{{date{offset_s:+}}}"


def with_dates(value: str, modified: datetime) -> str:
    """Replace the placeholders of `date` and of the two older formats by dates."""
    value = value.replace("{RFC 850 date}", modified.strftime("%A, %d-%b-%y %H:%M:%S GMT"))
    value = value.replace("{asctime date}", modified.strftime("%a %b %e %H:%M:%S %Y"))
    return re.sub(
        r"\{date([+-]\d+)\}",
        lambda match: format_datetime(modified + timedelta(seconds=int(match[1])), usegmt=True),
        value,
    )


CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"if-none-match": "{etag}"}, 304),
    ({"if-none-match": "W/{etag}"}, 304),
    ({"if-none-match": '"other", W/"x,y" ,{etag}'}, 304),
    ({"if-none-match": "*"}, 304),
    ({"if-none-match": '"other"'}, 200),
    ({"if-none-match": "unquoted"}, 200),
    ({"if-none-match": ""}, 200),
    ({"if-modified-since": date(0)}, 304),
    ({"if-modified-since": date(60)}, 304),
    ({"if-modified-since": date(-1)}, 200),
    ({"if-modified-since": "{RFC 850 date}"}, 304),
    ({"if-modified-since": "{asctime date}"}, 304),
    ({"if-modified-since": "yesterday"}, 200),
    ({"if-modified-since": "Fri, 02 Jan 99999999999999999999 03:04:05 GMT"}, 200),
    ({"if-modified-since": "9" * 5000}, 200),
    # The date is ignored if there is a tag.
    ({"if-none-match": '"other"', "if-modified-since": date(60)}, 200),
    ({"if-none-match": "{etag}", "if-modified-since": date(-60)}, 304),
    ({"if-match": "{etag}"}, 200),
    ({"if-match": '"other", {etag}'}, 200),
    ({"if-match": "*"}, 200),
    ({"if-match": '"other"'}, 412),
    ({"if-match": "W/{etag}"}, 412),
    ({"if-match": ""}, 412),
    ({"if-unmodified-since": date(0)}, 200),
    ({"if-unmodified-since": date(-1)}, 412),
    ({"if-unmodified-since": "yesterday"}, 200),
    ({"if-match": "{etag}", "if-unmodified-since": date(-60)}, 200),
    ({"if-match": '"other"', "if-unmodified-since": date(60)}, 412),
    # 412 takes precedence over 304, and both over the range.
    ({"if-match": '"other"', "if-none-match": "{etag}"}, 412),
    ({"if-match": "{etag}", "if-none-match": "{etag}"}, 304),
    ({"if-none-match": "{etag}", "range": "bytes=0-1"}, 304),
    ({"if-none-match": "{etag}", "range": "bytes=5000-"}, 304),
    ({"if-match": "{etag}", "range": "bytes=0-1"}, 206),
    ({"if-match": '"other"', "range": "bytes=5000-"}, 412),
    ({"range": "bytes=0-1", "if-range": "{etag}"}, 206),
    ({"range": "bytes=0-1", "if-range": "W/{etag}"}, 200),
    ({"range": "bytes=0-1", "if-range": '"other"'}, 200),
    ({"range": "bytes=0-1", "if-range": "{etag}, {etag}"}, 200),
    ({"range": "bytes=0-1", "if-range": date(0)}, 206),
    ({"range": "bytes=0-1", "if-range": date(1)}, 200),
    ({"range": "bytes=0-1", "if-range": date(-1)}, 200),
    ({"range": "bytes=0-1", "if-range": "yesterday"}, 200),
    ({"range": "bytes=5000-", "if-range": '"other"'}, 200),
    ({"range": "bytes=5000-", "if-range": "{etag}"}, 416),
    ({"if-range": "{etag}"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
def test_conditions(
    client: TestClient, validators: tuple[str, str], headers: dict[str, str], status: int
) -> None:
    modified = parsedate_to_datetime(validators[1])
    headers = {
        name: with_dates(value, modified).replace("{etag}", validators[0])
        for name, value in headers.items()
    }
    response = client.get("/chunk", headers=headers)
    assert response.status_code == status
    assert (response.headers["etag"], response.headers["last-modified"]) == validators
    if status == 304:
        assert response.content == b""
        assert "content-type" not in response.headers and "content-length" not in response.headers
    elif status == 412:
        assert response.json()["detail"]
    elif status == 200:
        assert response.content == CONTENT
    headers.pop("range", None)
    head = client.head("/chunk", headers=headers)
    assert head.status_code == (200 if status in {206, 416} else status)
    assert head.content == b""


def test_several_headers_with_tags(client: TestClient, validators: tuple[str, str]) -> None:
    headers = [("if-none-match", '"other"'), ("if-none-match", validators[0])]
    assert client.get("/chunk", headers=headers).status_code == 304

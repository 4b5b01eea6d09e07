"""Decoding of request bodies and headers."""

import gzip
import json

import pytest

from serve_app.http.errors import InvalidHeader, UnsupportedEncoding, UnsupportedMediaType
from serve_app.http.json_body import parse_idempotency_key, parse_submit
from workflows.errors import InvalidParameters


def errors(raw: bytes) -> list[tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        parse_submit(raw, None)
    return [(problem.field, problem.kind) for problem in caught.value.problems]


def test_parameters_are_decoded():
    assert parse_submit(b"{}", "application/json").parameters == {}
    body = parse_submit('{"parameters": {"a": [1, 2.5, "\u00e4"]}}'.encode(), None)
    assert body.parameters == {"a": [1, 2.5, "\u00e4"]}


def test_equivalent_bodies_have_the_same_digest():
    one = parse_submit(b'{"parameters": {"a": 1, "b": "\\u00e4"}}', None)
    same = parse_submit('{"parameters":{ "b":"\u00e4","a":1}}'.encode(), None)
    other = parse_submit(b'{"parameters": {"a": 2, "b": "\\u00e4"}}', None)
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", ("", "missing")),
        (b"  \n", ("", "missing")),
        (b"{", ("", "json_invalid")),
        (b"{}{}", ("", "json_invalid")),
        (b"[]", ("", "dict_type")),
        (b"null", ("", "dict_type")),
        (b'{"parameters": null}', ("parameters", "dict_type")),
        (b'{"parameters": [1]}', ("parameters", "dict_type")),
        (b'{"parameter": {}}', ("parameter", "extra_forbidden")),
        (b'{"parameters": {"x": 1, "x": 1}}', ("", "json_invalid")),
        (b'{"parameters": {"x": NaN}}', ("parameters.x", "finite_number")),
        (b'{"parameters": {"x": [0, -Infinity]}}', ("parameters.x.1", "finite_number")),
        (b'{"parameters": {"x": 1e999}}', ("parameters.x", "finite_number")),
        (b'{"parameters": {"x": %s}}' % (b"9" * 5000), ("parameters.x", "finite_number")),
        (b'{"parameters": {"x": "\\ud800"}}', ("parameters.x", "string_unicode")),
        (b'{"parameters": {"\\udfff": 1}}', ("parameters", "string_unicode")),
        (b'{"parameters": {"x": "\xff"}}', ("", "json_invalid")),
        (b"[" * 100_000, ("", "json_invalid")),
        (b'{"a":' * 100_000, ("", "json_invalid")),
        (b"[" * 900 + b"NaN" + b"]" * 900, ("", "json_invalid")),
    ],
)
def test_errors_name_the_place(raw, found):
    assert errors(raw) == [found]


def test_duplicate_keys_in_a_large_object_are_found_quickly():
    raw = json.dumps({f"k{i}": 0 for i in range(60_000)})[:-1] + ', "k59999": 0}'
    assert errors(raw.encode()) == [("", "json_invalid")]


@pytest.mark.parametrize(
    "encoding",
    ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_every_encoding_of_unicode_is_recognized(encoding):
    text = '{"parameters": {"a": "\u00e4\U0001f600"}}'
    assert parse_submit(text.encode(encoding), None) == parse_submit(text.encode(), None)
    # The refusals are those of UTF-8.
    assert errors("{".encode(encoding)) == [("", "json_invalid")]
    assert errors(" ".encode(encoding)) == [("", "missing")]
    assert errors('{"parameters": {"x": NaN}}'.encode(encoding)) == [
        ("parameters.x", "finite_number")
    ]


def test_an_encoding_error_names_the_encoding():
    with pytest.raises(InvalidParameters, match="invalid UTF-16 at byte"):
        parse_submit(b"\xff\xfe{\x00}", None)
    with pytest.raises(InvalidParameters, match="invalid UTF-8 at byte 1"):
        parse_submit(b'\xef\xbb\xbf"\xff"', None)


def test_compressed_bodies_are_refused_with_the_reason():
    assert parse_submit(b"{}", None, " Identity ").parameters == {}
    for encoding in ("gzip", "br", "identity, gzip", "GZIP"):
        with pytest.raises(UnsupportedEncoding, match=encoding):
            parse_submit(gzip.compress(b"{}"), "application/json", encoding)


def test_content_types():
    assert parse_submit(b"{}", "application/problem+json; charset=utf-8").parameters == {}
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "text/json"):
        with pytest.raises(UnsupportedMediaType):
            parse_submit(b"{}", content_type)


def test_idempotency_keys():
    assert parse_idempotency_key([]) is None
    assert parse_idempotency_key(["a b~!"]) == "a b~!"
    assert parse_idempotency_key(["k" * 255]) == "k" * 255
    for values in (["k" * 256], [""], ["\u00e4"], ["a\tb"], ["\x7f"], ["a", "b"]):
        with pytest.raises(InvalidHeader):
            parse_idempotency_key(values)


def test_deeply_nested_bodies_are_refused():
    def body(depth: int) -> bytes:
        return b'{"parameters": {"a": ' + b"[" * depth + b"]" * depth + b"}}"

    assert parse_submit(body(90), None).parameters["a"]
    for depth in (101, 300, 90_000):
        with pytest.raises(InvalidParameters, match="nested too deeply"):
            parse_submit(body(depth), None)

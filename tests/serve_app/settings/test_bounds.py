"""Settings that could never work are refused: numbers without measure, texts that are none."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.settings.settings import Settings
from tests.serve_app.settings.helpers import parse, refused

LOW, HIGH = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}


def numbers(schema: Any, place: str = "", bounds: frozenset[str] = frozenset()) -> Iterator[Any]:
    """Yield the place of each number in a schema, with the keywords that bound it."""
    if isinstance(schema, list):
        for entry in schema:
            yield from numbers(entry, place, bounds)
    elif isinstance(schema, dict):
        bounds |= schema.keys() & (LOW | HIGH)
        if schema.get("type") in ("integer", "number"):
            yield place, bounds
        for choices in ("anyOf", "oneOf", "allOf", "items", "prefixItems", "additionalProperties"):
            yield from numbers(schema.get(choices), place, bounds)
        for group in ("properties", "$defs"):
            for name, inner in schema.get(group, {}).items():
                yield from numbers(inner, f"{place}.{name}")


def test_every_number_has_bounds_at_both_ends() -> None:
    found = list(numbers(Settings.model_json_schema()))
    places = [place for place, _ in found]
    assert ".QueueSettings.max_size" in places
    assert ".ResultsSettings.keep_days" in places and ".LambertGrid.first_y_m" in places
    assert [place for place, bounds in found if not (bounds & LOW and bounds & HIGH)] == []


@pytest.mark.parametrize("value", [10**30, 1e30, 10**400, 1e6 + 1e9])
@pytest.mark.parametrize(
    "place",
    [
        "results.keep_days",
        "results.keep_record_days",
        "results.keep_failed_hours",
        "results.quota_gb",
        "limits.max_output_gb",
        "limits.max_body_mb",
        "data_sources.ifs.timeout_s",
        "azure.blob.time_limit_s",
        "azure.geocatalog.time_limit_s",
        "models.fcn3.num_gpus",
        "models.fcn3.replicas",
        "models.fcn3.grid.n_lat",
        "models.stormscope.grid.spacing_m",
        "queue.max_size",
        "queue.max_running",
        "packager.window_steps",
        "packager.replicas",
    ],
)
def test_numbers_without_measure_are_refused(place: str, value: float) -> None:
    args: dict[str, Any] = {}
    *sections, name = place.split(".")
    inner = args
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    (line,) = refused(args)
    assert line.startswith(f"args.{place}: ")


def test_refused_numbers_are_told_the_limit() -> None:
    (line,) = refused({"results": {"keep_days": 1e6}})
    assert line == "args.results.keep_days: Input should be less than or equal to 36525"


def test_a_century_can_be_kept() -> None:
    results = parse({"results": {"keep_days": 36_525, "keep_record_days": 36_525.0}}).results
    assert results.retention.keep_s == 36_525 * 86_400


@pytest.mark.parametrize(
    ("num_gpus", "message"),
    [(1.5, "must be up to 1, or a whole number"), (0.00001, "must be 0 or at least 0.0001")],
)
def test_gpus_that_ray_cannot_divide_are_refused(num_gpus: float, message: str) -> None:
    (line,) = refused({"models": {"fcn3": {"num_gpus": num_gpus}}})
    assert line.startswith(f"args.models.fcn3.num_gpus: {message}")
    assert parse({"models": {"fcn3": {"num_gpus": 2}}}).models.fcn3.resolved_num_gpus == 2


@pytest.mark.parametrize(
    "args",
    [
        {"data_dir": "/data\0"},
        {"store_url": "sqlite:////data/a\0b"},
        {"results_url": "file:///data/a\0b"},
        {"auth": {"tokens_file": "tokens\0"}},
        {"azure": {"ca_file": "\0"}},
        {"models": {"fcn3": {"loader": "a:b", "options": {"package": "/weights\0"}}}},
        {"workflows": {"custom": [{"class": "a:B", "config": {"c": [{"d": "\0"}]}}]}},
    ],
)
def test_nul_is_refused_in_every_text(args: dict[str, Any]) -> None:
    (line,) = refused(args)
    assert line.endswith(": must not contain NUL")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"data_dir": "\ud800"}, "args.data_dir: must be Unicode text"),
        ({"results_url": "file:///data/a%00b"}, "args.results_url: a path has no NUL"),
        ({"data_dir": "/" + "d" * 256}, "args.data_dir: a path has no NUL, up to 255 bytes"),
        ({"data_dir": "/dd" * 1000}, "args.data_dir: a path has no NUL, up to 255 bytes"),
        ({"data_dir": "~nobody-of-that-name/x"}, "args.data_dir: Could not determine home"),
        ({"store_url": f"sqlite:////{'d' * 256}"}, "args.store_url: a path has no NUL"),
        ({"auth": {"tokens_file": "t" * 256}}, "args.auth.tokens_file: a path has no NUL"),
        (
            {"store_url": "postgresql+psycopg://u@h:99999/d"},
            "args.store_url: the port must be between 1 and 65535",
        ),
        (
            {"azure": {"blob": {"emulator": "https://127.0.0.1:99999/devstoreaccount1"}}},
            "args.azure.blob.emulator: Port out of range",
        ),
    ],
)
def test_places_that_cannot_exist_are_refused(args: dict[str, Any], message: str) -> None:
    (line,) = refused(args)
    assert line.startswith(message)


def test_what_aliases_repeat_is_checked_once() -> None:
    options: dict[str, Any] = {"package": "/weights\0"}
    options["again"] = [options]
    (line,) = refused({"models": {"fcn3": {"loader": "a:b", "options": options}}})
    assert line == "args.models.fcn3.options.package: must not contain NUL"


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("deployments.loader:fcn3", "earth2serve has no module deployments.loader"),
        ("deployments.loaders:fnc3", "deployments.loaders has no fnc3; it has fcn3, hourly"),
    ],
)
def test_loaders_that_earth2serve_does_not_have_are_refused(loader: str, message: str) -> None:
    (line,) = refused({"models": {"fcn3": {"loader": loader}}})
    assert line.startswith(f"args.models.fcn3.loader: {message}")

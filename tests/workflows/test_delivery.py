"""Destinations of results: parsing, allow-lists and defaults."""

from typing import Any

import pytest

from workflows.delivery import Container, Delivery, DeliveryRules, parse_catalog, parse_container
from workflows.errors import DeliveryForbidden, InvalidParameters

EMULATOR = "https://127.0.0.1:10000/devstoreaccount1"
DATA = "https://weather.blob.core.windows.net/data"
CATALOG = "https://earth.abc123.westeurope.geocatalog.spatio.azure.com"
RULES = DeliveryRules(
    containers=(
        parse_container(f"{DATA}/forecasts"),
        parse_container(f"{EMULATOR}/results", EMULATOR),
    ),
    emulator=EMULATOR,
    catalogs=(CATALOG,),
)


@pytest.mark.parametrize(
    ("url", "account_url", "account", "name", "prefix"),
    [
        (DATA, "https://weather.blob.core.windows.net", "weather", "data", ""),
        (f"{DATA}/", "https://weather.blob.core.windows.net", "weather", "data", ""),
        (f"{DATA}/a/b=1/", "https://weather.blob.core.windows.net", "weather", "data", "a/b=1"),
        (
            "https://WEATHER.blob.core.usgovcloudapi.net/data",
            "https://weather.blob.core.usgovcloudapi.net",
            *("weather", "data", ""),
        ),
        (
            "https://weather.blob.core.chinacloudapi.cn/data",
            "https://weather.blob.core.chinacloudapi.cn",
            *("weather", "data", ""),
        ),
        (
            "https://weather.z23.blob.storage.azure.net/data",
            "https://weather.z23.blob.storage.azure.net",
            *("weather", "data", ""),
        ),
        (f"{EMULATOR}/results/x", EMULATOR, "devstoreaccount1", "results", "x"),
    ],
)
def test_container_urls_of_every_cloud_are_parsed(
    url: str, account_url: str, account: str, name: str, prefix: str
) -> None:
    expected = Container(account_url=account_url, account=account, name=name, prefix=prefix)
    assert parse_container(url, EMULATOR) == expected
    assert parse_container(expected.url, EMULATOR) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data",
        "https://weather.blob.core.windows.net",
        "https://weather.blob.core.windows.net/",
        "http://weather.blob.core.windows.net/data",
        "https://weather.blob.core.windows.net:443/data",
        "https://user:pass@weather.blob.core.windows.net/data",
        "https://weather.blob.core.windows.net@evil.example/data",
        "https://evil.example/weather.blob.core.windows.net/data",
        "https://evil.example#.blob.core.windows.net/data",
        f"{DATA}?sig=1",
        f"{DATA}#x",
        f"{DATA}/../other",
        f"{DATA}/./x",
        f"{DATA}//x",
        f"{DATA}/%2e%2e/other",
        f"{DATA}/a\\b",
        f"{DATA}/a b",
        f"{DATA}/a\n",
        "https://weather.blob.core.windows.net/Data",
        "https://weather.blob.core.windows.net/a--b",
        "https://weather.blob.core.windows.net/$web",
        "https://127.0.0.1:10001/devstoreaccount1/results",
        f"{EMULATOR}",
        f"{EMULATOR}/",
        f"{EMULATOR}2/results",
        f"{EMULATOR}/../x/results",
    ],
)
def test_invalid_and_ambiguous_container_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_container(url, EMULATOR)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (CATALOG, CATALOG),
        (f"{CATALOG}/", CATALOG),
        (f"{CATALOG.upper().replace('HTTPS', 'https')}:443", CATALOG),
        ("http://127.0.0.1:8090/catalog", "http://127.0.0.1:8090/catalog"),
        ("http://[::1]:8090/catalog/", "http://[::1]:8090/catalog"),
        ("https://[2001:DB8::7]:443", "https://[2001:db8::7]"),
        ("https://[2001:db8::7]", "https://[2001:db8::7]"),
    ],
)
def test_catalogue_urls_are_normalized(url: str, expected: str) -> None:
    assert parse_catalog(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a",
        f"{CATALOG}?a=1",
        f"{CATALOG}#a",
        "https://u@a.example",
        "https://a:99999",
        "https://:443",
        "https://::1",
        "https://[::1",
        "https://[::g]",
        f"{CATALOG}/../x",
        f"{CATALOG}/%2e",
        "https://a\\b",
    ],
)
def test_invalid_catalogue_urls_are_refused(url: str) -> None:
    try:
        found = parse_catalog(url)
    except ValueError:
        return
    # A valid URL is not necessarily an allowed one.
    with pytest.raises(DeliveryForbidden):
        RULES.resolve("w", {"container_url": f"{DATA}/forecasts", "geo_catalog_url": found})


@pytest.mark.parametrize(
    "url", [f"{DATA}/forecasts", f"{DATA}/forecasts/2025/", f"{EMULATOR}/results/mine"]
)
def test_allowed_containers_and_their_folders_are_accepted(url: str) -> None:
    delivery = RULES.resolve("w", {"container_url": url})
    assert delivery == Delivery(container=parse_container(url, EMULATOR))


@pytest.mark.parametrize(
    "url",
    [
        DATA,
        f"{DATA}/forecasts2",
        f"{DATA}/other",
        "https://weather.blob.core.windows.net/data2/forecasts",
        "https://weather2.blob.core.windows.net/data/forecasts",
        "https://weather.blob.core.usgovcloudapi.net/data/forecasts",
        f"{EMULATOR}/results2",
    ],
)
def test_other_containers_are_forbidden(url: str) -> None:
    with pytest.raises(DeliveryForbidden) as forbidden:
        RULES.resolve("w", {"container_url": url})
    [problem] = forbidden.value.problems
    assert problem.field == "parameters.container_url"
    assert "args.azure.blob.allowed_containers" in problem.message


def test_only_allowed_catalogues_are_accepted() -> None:
    asked = {"container_url": f"{DATA}/forecasts", "geo_catalog_url": f"{CATALOG}/"}
    delivery = RULES.resolve("w", {**asked, "collection_id": "mine"})
    assert delivery is not None
    assert (delivery.geo_catalog_url, delivery.collection_id) == (CATALOG, "mine")
    for other in (CATALOG.replace("earth", "mars"), f"{CATALOG}:8443", f"{CATALOG}/stac"):
        with pytest.raises(DeliveryForbidden, match="geocatalog.allowed"):
            RULES.resolve("w", {**asked, "geo_catalog_url": other})
    with pytest.raises(DeliveryForbidden):
        RULES.resolve("w", {**asked, "geo_catalog_url": CATALOG.replace("https", "http")})


def test_a_list_of_allowed_collections_limits_what_requests_name() -> None:
    rules = RULES.model_copy(
        update={"collections": {"w": "ours"}, "allowed_collections": ("shared",)}
    )
    asked = {"container_url": f"{DATA}/forecasts", "geo_catalog_url": CATALOG}
    for collection, expected in [("shared", "shared"), ("ours", "ours"), (None, "ours")]:
        delivery = rules.resolve("w", {**asked, "collection_id": collection})
        assert delivery is not None and delivery.collection_id == expected
    for workflow, collection in [("w", "other"), ("w", "share"), ("other", "ours")]:
        with pytest.raises(DeliveryForbidden, match="geocatalog.allowed_collections"):
            rules.resolve(workflow, {**asked, "collection_id": collection})


@pytest.mark.parametrize("collection", ["c" * 256, "", "..", "-c", "a/b", "a\n", "é"])
def test_ids_that_cannot_name_a_collection_are_refused(collection: str) -> None:
    asked = {"container_url": f"{DATA}/forecasts", "geo_catalog_url": CATALOG}
    with pytest.raises(InvalidParameters, match="1 to 255 letters"):
        RULES.resolve("w", {**asked, "collection_id": collection})
    delivery = RULES.resolve("w", {**asked, "collection_id": "c" * 255})
    assert delivery is not None and delivery.collection_id == "c" * 255


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"geo_catalog_url": CATALOG}, "geo_catalog_url", "give container_url"),
        ({"collection_id": "mine"}, "collection_id", "give geo_catalog_url"),
        ({"container_url": "https://x"}, "container_url", "must be https://ACCOUNT.blob"),
        ({"container_url": 5}, "container_url", "must be https://ACCOUNT.blob"),
        (
            {
                "container_url": f"{DATA}/forecasts",
                "geo_catalog_url": CATALOG,
                "collection_id": "a b",
            },
            "collection_id",
            "are allowed",
        ),
    ],
)
def test_contradictory_requests_are_refused(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidParameters) as refused:
        RULES.resolve("w", values)
    assert not isinstance(refused.value, DeliveryForbidden)
    [problem] = refused.value.problems
    assert problem.field == f"parameters.{field}"
    assert words in problem.message


def test_a_server_without_azure_refuses_deliveries() -> None:
    nothing = DeliveryRules()
    assert nothing.resolve("w", {"container_url": None, "n_steps": 3}) is None
    for name in ("container_url", "geo_catalog_url", "collection_id"):
        with pytest.raises(InvalidParameters, match=f"parameters.{name}: this server"):
            nothing.resolve("w", {name: DATA})


def test_defaults_apply_where_a_request_names_nothing() -> None:
    rules = RULES.model_copy(
        update={
            "default_container": RULES.containers[0],
            "default_catalog": CATALOG,
            "collections": {"w": "ours"},
        }
    )
    delivery = rules.resolve("w", {})
    assert delivery == Delivery(
        container=RULES.containers[0], geo_catalog_url=CATALOG, collection_id="ours"
    )
    other = rules.resolve("other", {"container_url": f"{EMULATOR}/results"})
    assert other is not None and other.collection_id is None
    assert other.container is not None and other.container.name == "results"
    # The content of a user class's results is unknown.
    custom = rules.resolve("w", {}, can_be_registered=False)
    assert custom == Delivery(container=RULES.containers[0])
    with pytest.raises(InvalidParameters, match="uploaded, not registered"):
        rules.resolve("w", {"geo_catalog_url": CATALOG}, can_be_registered=False)


def test_results_in_blob_need_no_upload_to_be_registered() -> None:
    rules = RULES.model_copy(update={"results_in_blob": True})
    delivery = rules.resolve("w", {"geo_catalog_url": CATALOG})
    assert delivery == Delivery(geo_catalog_url=CATALOG)

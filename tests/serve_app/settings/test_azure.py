"""The settings under ``args.azure``, and the delivery rules that follow from them."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.settings.parsing import SettingsError, parse_settings
from serve_app.settings.settings import Settings
from workflows.delivery import DeliveryRules

DATA = "https://weather.blob.core.windows.net/data"
CATALOG = "https://earth.geocatalog.example"
EMULATOR = "https://127.0.0.1:10000/devstoreaccount1"


def parse(**azure: Any) -> Settings:
    return parse_settings({"azure": azure}, {}, Path("/srv"))


def test_nothing_is_allowed_by_default() -> None:
    settings = parse()
    assert settings.delivery_rules == DeliveryRules()
    assert not settings.delivery_rules.uploads and not settings.delivery_rules.registers


def test_allowed_destinations_become_delivery_rules() -> None:
    settings = parse(
        ca_file="ca.pem",
        blob={
            "emulator": EMULATOR,
            "allowed_containers": [DATA, f"{EMULATOR}/results"],
            "default_container": f"{DATA}/nightly",
        },
        geocatalog={
            "allowed": [f"{CATALOG}/", "http://127.0.0.1:8090"],
            "default_catalog": CATALOG,
            "collections": {"foundry_fcn3_workflow": "fcn3"},
            "allowed_collections": ["nightly"],
        },
    )
    rules = settings.delivery_rules
    assert [container.url for container in rules.containers] == [DATA, f"{EMULATOR}/results"]
    assert rules.default_container is not None
    assert rules.default_container.url == f"{DATA}/nightly"
    assert rules.catalogs == (CATALOG, "http://127.0.0.1:8090")
    assert rules.default_catalog == CATALOG
    assert rules.allowed_collections == ("nightly",)
    assert settings.azure.ca_file == Path("/srv/ca.pem")


@pytest.mark.parametrize(
    ("azure", "place", "message"),
    [
        (
            {"blob": {"allowed_containers": ["https://x"]}},
            "azure.blob.allowed_containers",
            "must be https://ACCOUNT.blob",
        ),
        (
            {"blob": {"allowed_containers": [f"{EMULATOR}/a"]}},
            "azure.blob.allowed_containers",
            "must be https://ACCOUNT.blob",
        ),
        (
            {"blob": {"default_container": DATA}},
            "azure.blob.default_container",
            "not in allowed_containers",
        ),
        (
            {"blob": {"emulator": "http://127.0.0.1:10000/a"}},
            "azure.blob.emulator",
            "must be its endpoint",
        ),
        (
            {"blob": {"emulator": "https://127.0.0.1:10000"}},
            "azure.blob.emulator",
            "must be its endpoint",
        ),
        ({"blob": {"signed_url_s": 10**7}}, "azure.blob.signed_url_s", "less than or equal"),
        (
            {"blob": {"allowed_container": [DATA]}},
            "azure.blob.allowed_container",
            "did you mean allowed_containers",
        ),
        (
            {"geocatalog": {"allowed": ["http://earth.example"]}},
            "azure.geocatalog.allowed[0]",
            "must start with https://",
        ),
        ({"geocatalog": {"allowed": ["earth"]}}, "azure.geocatalog.allowed[0]", "https:// URL"),
        ({"geocatalog": {"default_catalog": CATALOG}}, "azure.geocatalog", "not in allowed"),
        (
            {"geocatalog": {"collections": {"no": "c"}}},
            "azure",
            "unknown workflow 'no'; known are foundry",
        ),
        (
            {"geocatalog": {"collections": {"foundry_fcn3_workflow": "a b"}}},
            "azure.geocatalog.collections",
            "are allowed",
        ),
        (
            {"geocatalog": {"allowed_collections": ["c" * 256]}},
            "azure.geocatalog.allowed_collections[0]",
            "1 to 255 letters",
        ),
        ({"geocatalog": {"api_version": "latest"}}, "azure.geocatalog.api_version", "pattern"),
        ({"credential": {"loader": "azure.identity"}}, "azure.credential.loader", "module:Class"),
    ],
)
def test_invalid_azure_settings_are_reported(
    azure: dict[str, Any], place: str, message: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        parse(**azure)
    assert f"args.{place}" in str(refused.value)
    assert message in str(refused.value)


def test_the_summary_shows_keys_of_credential_options_but_not_values() -> None:
    settings = parse(credential={"options": {"client_secret": "planted"}})
    summary = settings.summary()
    assert summary["azure"]["credential"]["options"] == ["client_secret"]
    assert "planted" not in str(summary)

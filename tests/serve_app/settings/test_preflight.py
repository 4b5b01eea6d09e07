"""Checks of the settings against the machine and the cluster."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.settings.parsing import SettingsError
from serve_app.settings.preflight import (
    check_certificates,
    check_installed,
    check_nodes,
    is_installed,
)
from tests.serve_app.settings.helpers import IN_BLOB, parse


@pytest.mark.parametrize(
    "args",
    [
        {"results_url": "az://contosoweather/forecasts"},
        {"azure": {"blob": {"allowed_containers": ["https://contoso.blob.core.windows.net/data"]}}},
        {"azure": {"geocatalog": {"allowed": ["https://earth.example"]}}},
    ],
)
def test_azure_settings_require_azure_packages(args: dict[str, Any]) -> None:
    settings = parse(args)
    check_installed(settings)
    with pytest.raises(SettingsError, match=r"obstore cannot be imported; .* '\.\[azure\]'"):
        check_installed(settings, lambda name: name != "obstore")
    check_installed(parse({}), lambda _: False)
    assert not is_installed("azure.no_such_package") and not is_installed("no_such_package.azure")


def test_unreadable_certificates_are_refused(tmp_path: Path) -> None:
    check_certificates(parse({}))
    empty = tmp_path / "ca.pem"
    empty.write_text("no certificate")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(
            SettingsError, match=r"^args\.azure\.ca_file: cannot read PEM certificates"
        ):
            check_certificates(parse({"azure": {"ca_file": str(path)}}))


def test_a_disk_of_one_machine_is_refused_on_several_nodes() -> None:
    with pytest.raises(SettingsError) as error:
        check_nodes(parse({}), 3)
    first, second = str(error.value).splitlines()
    assert first.startswith("args.store_url: SQLite") and "3 nodes" in first
    assert second.startswith("args.results_url: ")
    check_nodes(parse({"shared_filesystem": True}), 3)
    with pytest.raises(SettingsError, match=r"^args\.results_url: [^\n]*$"):
        check_nodes(parse({"store_url": "postgresql+psycopg://u@h/d"}), 2)
    with pytest.raises(SettingsError, match=r"^args\.store_url: [^\n]*$"):
        check_nodes(parse({"results_url": IN_BLOB}), 2)
    shared = {"results_url": IN_BLOB, "store_url": "postgresql+psycopg://u@h/d"}
    check_nodes(parse(shared), 2)

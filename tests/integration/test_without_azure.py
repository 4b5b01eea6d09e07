"""A server without any settings for Azure."""

from __future__ import annotations

import pytest

from tests.integration.serving import WORKFLOW as FORECAST
from tests.integration.serving import Server

pytestmark = pytest.mark.ray


def test_deployments_and_packages_of_azure_are_absent(
    shared_server: Server,
) -> None:
    assert shared_server.replicas("BlobUploader") == shared_server.replicas("GeoCatalog") == []

    # A nested function is pickled by value: replicas do not import this module, which imports
    # Azure's packages.
    def azure_modules() -> list[str]:
        import sys

        return sorted({name.split(".")[0] for name in sys.modules} & {"azure", "obstore"})

    for deployment in ("Conductor", "Ingress", "Packager"):
        modules = shared_server.call(deployment, azure_modules)
        assert modules == [[]] * len(modules)
    response = shared_server.http.post(
        f"/v1/infer/{FORECAST}",
        json={"parameters": {"container_url": "https://a.blob.core.windows.net/data"}},
    )
    assert response.status_code == 422

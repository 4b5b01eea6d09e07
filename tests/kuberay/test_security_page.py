"""docs/security.md says what the manifests do: pods, their secrets, and open ports."""

from __future__ import annotations

import json
import re

import pytest

from serve_app.check import DEPLOYMENTS
from tests.kuberay.rendering import (
    ROOT,
    containers,
    groups,
    has_database,
    open_to_others,
    ray_service,
    rendered,
    resources,
    serve_config,
)

PAGE = (ROOT / "docs" / "security.md").read_text()
on_azure = pytest.mark.parametrize("overlay", ["single-gpu", "multi-gpu"])
WORKER = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}


def table(heading: str) -> list[list[str]]:
    """Return the cells of the first table of a section, without its header."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


@on_azure
def test_each_group_of_pods_has_what_the_page_says(overlay: str) -> None:
    described = {
        group.strip("`"): row[1:] for row in table("Identities") for group in row[0].split(", ")
    }
    assert described.keys() >= groups(overlay).keys()
    (application,) = serve_config(overlay)["applications"]
    placed = {
        each["name"]: next(iter(each["ray_actor_options"]["resources"]))
        for each in application["deployments"]
        if "resources" in each.get("ray_actor_options", {})
    }
    options = ray_service(overlay)["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert "redisPassword" in options  # KubeRay puts it into the head's environment
    for name, group in groups(overlay).items():
        runs, identity, database, redis = described[name]
        account = group["template"]["spec"].get("serviceAccountName")
        assert (identity == "yes") is (account == "azure"), name
        assert (database == "yes") is has_database(group), name
        assert (redis == "yes") is (name == "head"), name
        assert "redis" not in json.dumps(containers(overlay)[name]), name
        for deployment in DEPLOYMENTS:
            if deployment in runs:
                # Models are where the GPUs are; a GeoCatalog is optional (docs/aks.md).
                on_gpu = deployment not in placed and resources(group)["GPU"] > 0
                assert placed.get(deployment) == name or on_gpu or deployment == "GeoCatalog"
    assert {*re.findall(r"\w+", " ".join(row[1] for row in table("Identities")))} >= {
        *placed,
        *("FCN3", "StormScope"),
    }


@on_azure
def test_exactly_the_ports_of_the_page_are_open_to_others(overlay: str) -> None:
    opened: set[int] = set()
    for ports, _what, whom in table("Network"):
        if whom != "Ray's own pods" and "Redis" not in ports:
            opened |= {int(port) for port in re.findall(r"\d{4,5}", ports)}
    assert open_to_others(overlay, WORKER) == opened
    assert open_to_others(overlay, HEAD) == opened


@on_azure
def test_outgoing_traffic_is_what_the_page_says(overlay: str) -> None:
    section = " ".join(
        PAGE.partition("\nOutgoing traffic may go to ")[2].partition("\n\n")[0].split()
    )
    ports = {
        (policy["metadata"]["name"], port["port"])
        for policy in rendered(overlay)
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("egress", ())
        for port in rule.get("ports", ())
    }
    assert ports == {
        ("ray-pods", 53),
        ("ray-pods", 443),
        ("database", 5432),
        ("heads-to-redis", 6379),
    }
    for words in ("DNS", "port 443", "from `azure` to port 5432", "from heads to Redis"):
        assert words in section
    assert "Redis opens no connections" in section


def test_no_secret_is_in_the_environment_of_a_worker() -> None:
    for overlay in ("single-gpu", "multi-gpu"):
        for name, container in containers(overlay).items():
            assert not [each for each in container.get("env", ()) if "valueFrom" in each], name
            assert [each for each in container["envFrom"] if "secretRef" in each] == [], name

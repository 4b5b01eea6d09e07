"""The pod monitor for Prometheus fits Ray's pods and their network policies."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.kuberay.rendering import OVERLAYS, ROOT, containers, rendered
from tests.kuberay.test_manifests import KUBERNETES, ports

FILE = ROOT / "config" / "prometheus" / "pod-monitor.yaml"
MONITOR, POLICY = yaml.safe_load_all(FILE.read_text())
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def policies(overlay: str) -> dict[str, Any]:
    return {e["metadata"]["name"]: e for e in rendered(overlay) if e["kind"] == "NetworkPolicy"}


@every_overlay
def test_every_pod_has_the_scraped_ports(overlay: str) -> None:
    scraped = [each["port"] for each in MONITOR["spec"]["podMetricsEndpoints"]]
    for container in containers(overlay).values():
        assert {name: ports(container)[name] for name in scraped} == {
            "metrics": 8080,
            "haproxy": 9101,
        }


@every_overlay
def test_it_selects_rays_pods_as_the_policies_do(overlay: str) -> None:
    # KubeRay sets this label; the manifests must not.
    (label,) = MONITOR["spec"]["selector"]["matchLabels"].items()
    assert label == ("ray.io/is-ray-node", "yes")
    for name in ("ray-pods", "metrics"):
        assert policies(overlay)[name]["spec"]["podSelector"] == MONITOR["spec"]["selector"]
    assert label[0] not in str([each for each in rendered(overlay) if each["kind"] == "RayService"])


@every_overlay
def test_the_policy_admits_prometheus(overlay: str) -> None:
    kubernetes_validate.validate(POLICY, KUBERNETES, strict=True)
    (namespace,) = (e for e in rendered(overlay) if e["kind"] == "Namespace")
    namespaces = {MONITOR["metadata"]["namespace"], POLICY["metadata"]["namespace"]}
    assert namespaces == {namespace["metadata"]["name"]}
    ours, theirs = POLICY["spec"], policies(overlay)["metrics"]["spec"]
    assert ours["podSelector"] == theirs["podSelector"]
    assert ours["ingress"][0]["ports"] == theirs["ingress"][0]["ports"]
    assert POLICY["metadata"]["name"] not in policies(overlay)


def test_a_monitor_for_the_prometheus_operator_differs_in_one_word() -> None:
    text = FILE.read_text()
    ((old, new),) = re.findall(r"sed 's/(\w+)/(\w+)/'", text)
    monitor, policy = yaml.safe_load_all(text.replace(old, new))
    assert monitor == MONITOR | {"apiVersion": "monitoring.coreos.com/v1"}
    assert policy == POLICY

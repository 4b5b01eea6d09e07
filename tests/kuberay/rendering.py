"""Render the overlays as `kubectl apply -k` does."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.__main__ import ENVIRONMENT

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "config" / "kuberay"
OVERLAYS = sorted(path.parent.name for path in KUBERAY.glob("overlays/*/kustomization.yaml"))

IN_IMAGE = {name: value.replace(str(ROOT), "/app") for name, value in ENVIRONMENT.items()}
"""What `python -m serve_app` sets, with the paths of the image."""

Manifest = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Return the manifests of an overlay, all kinds.

    kubectl includes kustomize; without it the test is skipped.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders config/kuberay, is not on the PATH")
    done = subprocess.run(
        [kubectl, "kustomize", KUBERAY / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def ray_service(overlay: str) -> Manifest:
    (service,) = (each for each in rendered(overlay) if each["kind"] == "RayService")
    return service


def groups(overlay: str) -> dict[str, Manifest]:
    """Return the groups of an overlay by name; the head is `head`."""
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"], **workers}


def containers(overlay: str) -> dict[str, Manifest]:
    """Return Ray's container of each group, which for KubeRay is the first one."""
    return {
        name: group["template"]["spec"]["containers"][0] for name, group in groups(overlay).items()
    }


def serve_config(overlay: str) -> Manifest:
    """Return the configuration of Serve."""
    config: Manifest = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])
    return config


def arguments(overlay: str) -> Manifest:
    """Return the `args` of the application."""
    (application,) = serve_config(overlay)["applications"]
    args: Manifest = application["args"]
    return args


def resources(group: Manifest) -> dict[str, float]:
    """Return the resources that a group's nodes have, as KubeRay passes them to `ray start`."""
    params = group["rayStartParams"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    custom = yaml.safe_load(yaml.safe_load(params.get("resources", '"{}"')))
    return {
        "CPU": float(params.get("num-cpus", limits["cpu"])),
        "GPU": float(params.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        **{name: float(amount) for name, amount in custom.items()},
    }


def has_database(group: Manifest) -> bool:
    """Return whether the pods of a group have the password or a route to the database."""
    pod = group["template"]
    volumes = [volume.get("secret", {}) for volume in pod["spec"].get("volumes", ())]
    return (
        {"secretName": "earth2serve-store"} in volumes
        or "earth2serve/database" in pod.get("metadata", {}).get("labels", {})
        or "earth2serve-store" in json.dumps(pod["spec"]["containers"])
    )


def open_to_others(overlay: str, labels: dict[str, str]) -> set[int]:
    """Return the ports of a pod that are open to pods other than Ray's."""
    opened: set[int] = set()
    for policy in rendered(overlay):
        if policy["kind"] != "NetworkPolicy" or "Ingress" not in policy["spec"]["policyTypes"]:
            continue
        selected = policy["spec"]["podSelector"]["matchLabels"]
        if not selected.items() <= labels.items():
            continue
        for rule in policy["spec"].get("ingress", ()):
            if any("namespaceSelector" in peer for peer in rule["from"]):
                opened |= {port["port"] for port in rule["ports"]}
    return opened

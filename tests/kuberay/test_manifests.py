"""Every overlay of config/kuberay renders, is valid, and configures what the server needs."""

from __future__ import annotations

import copy
import json
import re
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import sqlalchemy as sa
from ray._private import ray_constants
from ray.serve._private.constants import RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S
from ray.serve.schema import EncodingType, ServeDeploySchema

from serve_app.check import check_file
from serve_app.settings.parsing import parse_settings
from serve_app.settings.preflight import check_nodes
from tests.kuberay.ray_service_schema import RAY_SERVICE
from tests.kuberay.rendering import (
    IN_IMAGE,
    KUBERAY,
    OVERLAYS,
    ROOT,
    arguments,
    containers,
    groups,
    has_database,
    open_to_others,
    ray_service,
    rendered,
    resources,
    serve_config,
)

KUBERNETES = "1.33"
ON_AZURE = ("single-gpu", "multi-gpu")
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
on_azure = pytest.mark.parametrize("overlay", ON_AZURE)


def errors_of(manifest: dict[str, Any]) -> list[str]:
    """Return the errors of a manifest, unknown fields included."""
    errors = []
    if manifest["kind"] == "RayService":
        validator = jsonschema.Draft202012Validator(RAY_SERVICE)
        errors += [
            f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)
        ]
        cluster = manifest["spec"]["rayClusterConfig"]
        pods = [
            {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        ]
    else:
        pods = [manifest]
    for pod in pods:
        try:
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            errors.append(f"{list(error.absolute_path)}: {error.message}")
    return errors


def override(overlay: str, deployment: str) -> dict[str, Any]:
    """Return the overrides of one deployment."""
    (application,) = serve_config(overlay)["applications"]
    (overrides,) = (each for each in application["deployments"] if each["name"] == deployment)
    return dict(overrides)


def ports(container: dict[str, Any]) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in container["ports"]}


def test_there_are_three_overlays() -> None:
    assert OVERLAYS == ["demo-cpu", "multi-gpu", "single-gpu"]


@every_overlay
def test_every_manifest_is_valid(overlay: str) -> None:
    errors = {each["kind"]: errors_of(each) for each in rendered(overlay)}
    assert {kind: each for kind, each in errors.items() if each} == {}
    assert errors.keys() >= {"RayService", "NetworkPolicy", "ConfigMap"}


@every_overlay
def test_everything_is_in_one_namespace(overlay: str) -> None:
    namespaces = {
        (each["kind"], each["metadata"]["name"]): each["metadata"].get("namespace")
        for each in rendered(overlay)
        if each["kind"] != "Namespace"
    }
    assert set(namespaces.values()) == {"earth2serve"}, namespaces


def test_errors_are_found() -> None:
    service = copy.deepcopy(ray_service("multi-gpu"))
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 2
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["nodeSelektor"] = {}
    errors = errors_of(service)
    assert len(errors) == 2
    assert "maxReplica" in errors[0] and "nodeSelektor" in errors[1]


@every_overlay
def test_the_configuration_is_the_file_beside_it_and_passes_the_check(overlay: str) -> None:
    source = KUBERAY / "overlays" / overlay / "serve.yaml"
    assert ray_service(overlay)["spec"]["serveConfigV2"] == source.read_text()
    assert check_file(str(source)) == []


@every_overlay
def test_all_processes_of_serve_log_json(overlay: str) -> None:
    config = ServeDeploySchema.model_validate(serve_config(overlay))
    assert config.logging_config is not None
    assert config.logging_config.encoding == EncodingType.JSON
    assert config.logging_config.enable_access_log is False
    # An application's own would override it.
    assert [each.logging_config for each in config.applications] == [None]


@every_overlay
def test_the_settings_are_valid_on_several_nodes(overlay: str) -> None:
    settings = parse_settings(arguments(overlay), {})
    check_nodes(settings, len(groups(overlay)))
    # Each pod would resolve a relative path on its own.
    assert settings.data_dir == Path(arguments(overlay)["data_dir"])


@every_overlay
def test_values_for_replacements_are_not_deployed(overlay: str) -> None:
    names = [each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "ConfigMap"]
    assert names == ["earth2serve-environment"]


@every_overlay
def test_no_secret_is_in_the_manifests(overlay: str) -> None:
    assert not [each for each in rendered(overlay) if each["kind"] == "Secret"]
    url = parse_settings(arguments(overlay), {}).resolved_store_url
    assert sa.make_url(url).password is None


@every_overlay
def test_all_pods_have_one_image(overlay: str) -> None:
    pods = [group["template"]["spec"] for group in groups(overlay).values()]
    images = {
        container["image"]
        for pod in pods
        for container in chain(pod["containers"], pod.get("initContainers", ()))
    }
    (image,) = images
    assert image != "earth2serve"  # the placeholder of the base


@every_overlay
def test_ray_has_the_pinned_release(overlay: str) -> None:
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == version("ray")


@every_overlay
def test_every_pod_has_the_environment_that_serves_configuration_cannot_set(overlay: str) -> None:
    (values,) = (each["data"] for each in rendered(overlay) if each["kind"] == "ConfigMap")
    # A pod is removed from its Service late.
    late = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
    assert int(values.pop(late)) > int(IN_IMAGE[late])
    assert values.pop("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO") == "1"
    assert values == {name: value for name, value in IN_IMAGE.items() if name != late}
    for container in containers(overlay).values():
        assert container["envFrom"] == [{"configMapRef": {"name": "earth2serve-environment"}}]


@every_overlay
def test_ray_requires_a_token(overlay: str) -> None:
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    # In a container it would override KubeRay's.
    names = {e["name"] for c in containers(overlay).values() for e in c.get("env", ())}
    assert "RAY_AUTH_MODE" not in names


@every_overlay
def test_no_pod_runs_as_root_or_gains_privileges(overlay: str) -> None:
    pods = [group["template"]["spec"] for group in groups(overlay).values()]
    pods += [e["spec"]["template"]["spec"] for e in rendered(overlay) if e["kind"] == "StatefulSet"]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in chain(pod["containers"], pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}


@every_overlay
def test_exactly_one_group_can_run_each_deployment(overlay: str) -> None:
    """And the models fill all GPUs."""
    nodes = {name: resources(group) for name, group in groups(overlay).items()}
    (application,) = serve_config(overlay)["applications"]
    for deployment in application["deployments"]:
        options = deployment.get("ray_actor_options")
        if options is None:
            continue
        required = {"CPU": options["num_cpus"], **options["resources"]}
        suitable = [
            name
            for name, node in nodes.items()
            if all(node.get(resource, 0) >= amount for resource, amount in required.items())
        ]
        assert len(suitable) == 1, f"{deployment['name']}: {suitable}"
    models = parse_settings(arguments(overlay), {}).models
    gpus = sum(
        node["GPU"] * groups(overlay)[name]["maxReplicas"]
        for name, node in nodes.items()
        if name != "head"
    )
    required_gpus = sum(
        model.replicas * model.resolved_num_gpus for model in (models.fcn3, models.stormscope)
    )
    assert required_gpus == gpus


@every_overlay
def test_the_head_runs_no_replica(overlay: str) -> None:
    assert resources(groups(overlay)["head"])["CPU"] == 0
    assert ray_service(overlay)["spec"]["excludeHeadPodFromServeSvc"] is True


@every_overlay
def test_only_pods_with_a_gpu_see_one(overlay: str) -> None:
    for container in containers(overlay).values():
        environment = {each["name"]: each["value"] for each in container.get("env", ())}
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert (environment.get("NVIDIA_VISIBLE_DEVICES") == "void") is not has_gpu


@on_azure
def test_only_the_azure_group_has_an_identity(overlay: str) -> None:
    label = "azure.workload.identity/use"
    has = {
        name: group["template"].get("metadata", {}).get("labels", {}).get(label)
        for name, group in groups(overlay).items()
    }
    accounts = {
        name: group["template"]["spec"].get("serviceAccountName")
        for name, group in groups(overlay).items()
    }
    assert {name for name, value in has.items() if value} == {"azure"}
    assert {name for name, account in accounts.items() if account} == {"azure"}
    (application,) = serve_config(overlay)["applications"]
    in_azure_group = {
        each["name"]
        for each in application["deployments"]
        if "azure" in each.get("ray_actor_options", {}).get("resources", {})
    }
    # Ingress and Packager call Azure if results are in a container (docs/azure.md); the Conductor
    # needs the database's password, as the Ingress does.
    assert in_azure_group == {"Conductor", "Ingress", "Packager"}
    assert parse_settings(arguments(overlay), {}).results_container is not None


@on_azure
def test_the_password_reaches_the_pods_that_open_the_store(overlay: str) -> None:
    url = sa.make_url(parse_settings(arguments(overlay), {}).resolved_store_url)
    path = Path(str(url.query["passfile"]))
    assert url.query["sslmode"] == "verify-full"
    with_password = {
        name
        for name, container in containers(overlay).items()
        if str(path.parent) in [m["mountPath"] for m in container.get("volumeMounts", ())]
    }
    assert with_password == {"azure"}
    opening = {
        name
        for deployment in ("Ingress", "Conductor")
        for name in override(overlay, deployment)["ray_actor_options"]["resources"]
    }
    assert opening == with_password
    for name in with_password:
        pod = groups(overlay)[name]["template"]
        (copy_,) = pod["spec"]["initContainers"]
        assert copy_["command"][-1] == str(path)
        assert pod["metadata"]["labels"]["earth2serve/database"] == "client"


@on_azure
def test_no_pod_with_third_party_code_has_the_database_or_the_identity(overlay: str) -> None:
    """Data sources run in InitialConditions, models where there are GPUs."""
    (sources,) = override(overlay, "InitialConditions")["ray_actor_options"]["resources"]
    foreign = {sources} | {
        name for name, group in groups(overlay).items() if resources(group)["GPU"]
    }
    assert len(foreign) >= 2
    for name in foreign:
        assert not has_database(groups(overlay)[name]), name
        assert "serviceAccountName" not in groups(overlay)[name]["template"]["spec"], name
    assert {name for name, group in groups(overlay).items() if has_database(group)} == {"azure"}


@on_azure
def test_the_database_is_one_subnet(overlay: str) -> None:
    policies = {e["metadata"]["name"]: e for e in rendered(overlay) if e["kind"] == "NetworkPolicy"}
    assert policies["database"]["spec"]["podSelector"]["matchLabels"] == {
        "earth2serve/database": "client"
    }
    (rule,) = policies["database"]["spec"]["egress"]
    (subnet,) = (peer["ipBlock"]["cidr"] for peer in rule["to"])
    assert f"--address-prefixes {subnet} " in (ROOT / "docs" / "aks.md").read_text()
    for name, policy in policies.items():
        for rule in policy["spec"].get("egress", ()):
            assert rule.get("to"), f"{name} opens a port of any host"


@on_azure
def test_images_of_others_are_pinned_by_digest(overlay: str) -> None:
    images = [
        container["image"]
        for manifest in rendered(overlay)
        if manifest["kind"] == "StatefulSet"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]
    (redis,) = images
    version_, digest = re.fullmatch(
        r"redis:([\d.]+)-bookworm@sha256:([0-9a-f]{64})", redis
    ).groups()
    # Earlier releases have known holes.
    assert tuple(map(int, version_.split("."))) >= (7, 4, 11)
    assert redis.partition("@")[0] in (ROOT / "docs" / "security.md").read_text()


@every_overlay
def test_the_readiness_probe_of_the_ingress_needs_no_token(overlay: str) -> None:
    (group,) = override(overlay, "Ingress")["ray_actor_options"]["resources"]
    container = containers(overlay)[group]
    probe = container["readinessProbe"]["httpGet"]
    assert probe["path"] == "/liveness"
    assert ports(container)[probe["port"]] == serve_config(overlay)["http_options"]["port"]
    # A liveness probe would restart a pod and lose its work when the application does not respond.
    assert not [each for each in containers(overlay).values() if "livenessProbe" in each]


@on_azure
def test_the_tokens_are_mounted_in_the_ingress(overlay: str) -> None:
    mounted = {m["mountPath"] for m in containers(overlay)["azure"]["volumeMounts"]}
    assert str(Path(arguments(overlay)["auth"]["tokens_file"]).parent) in mounted


@on_azure
def test_a_download_has_two_minutes_when_a_pod_or_replica_of_the_ingress_stops(
    overlay: str,
) -> None:
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0  # the name exists in Ray
    pod = groups(overlay)["azure"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in containers(overlay)["azure"]["env"]}
    drain_s = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drain_s == override(overlay, "Ingress")["graceful_shutdown_timeout_s"] == 120
    assert RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S >= drain_s
    # Ray's own processes stop afterwards.
    assert pod["terminationGracePeriodSeconds"] >= drain_s + 20


@on_azure
def test_a_pod_is_not_evicted_for_a_full_data_volume(overlay: str) -> None:
    for name in containers(overlay).keys() - {"head", "work"}:
        limit = containers(overlay)[name]["resources"]["limits"]["ephemeral-storage"]
        (data,) = (
            volume["emptyDir"]["sizeLimit"]
            for volume in groups(overlay)[name]["template"]["spec"]["volumes"]
            if volume["name"] == "data"
        )
        assert int(limit.removesuffix("Gi")) > int(data.removesuffix("Gi"))


@on_azure
def test_downloads_of_weights_have_enough_time(overlay: str) -> None:
    earth2studio = find_spec("earth2studio")
    assert earth2studio is not None and earth2studio.origin is not None
    reader = Path(earth2studio.origin).parent / "models" / "auto" / "package.py"
    for name in containers(overlay).keys() - {"head", "work", "azure"}:
        environment = {each["name"]: each["value"] for each in containers(overlay)[name]["env"]}
        assert int(environment["EARTH2STUDIO_PACKAGE_TIMEOUT"]) > 300
        assert '"EARTH2STUDIO_PACKAGE_TIMEOUT"' in reader.read_text()


@on_azure
def test_only_the_spot_group_tolerates_spot_nodes(overlay: str) -> None:
    tolerant = {
        name
        for name, group in groups(overlay).items()
        for each in group["template"]["spec"].get("tolerations", ())
        if each["key"] == "kubernetes.azure.com/scalesetpriority"
    }
    assert tolerant == ({"gpu-spot"} if overlay == "multi-gpu" else set())


def test_the_autoscaling_of_a_model_agrees_with_its_replicas() -> None:
    fcn3 = override("multi-gpu", "FCN3")
    assert fcn3["autoscaling_config"]["target_ongoing_requests"] == 1
    replicas = arguments("multi-gpu")["models"]["fcn3"]["replicas"]
    assert fcn3["autoscaling_config"]["max_replicas"] == replicas


@every_overlay
def test_only_required_ports_are_open(overlay: str) -> None:
    worker = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
    # 8000: clients and operator; 8265, 52365: operator; 8080, 9101: Prometheus. Closed are 8404
    # (HAProxy's statistics), 6379, 10001, 8500, 30000 and up.
    assert open_to_others(overlay, worker) == {8000, 8080, 8265, 9101, 52365}
    policies = {e["metadata"]["name"]: e for e in rendered(overlay) if e["kind"] == "NetworkPolicy"}
    assert policies["ray-pods"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    (internet,) = (
        rule["to"][0]["ipBlock"]
        for rule in policies["ray-pods"]["spec"]["egress"]
        if "ipBlock" in rule["to"][0]
    )
    assert "169.254.0.0/16" in internet["except"]


@pytest.mark.parametrize("overlay", ON_AZURE)
def test_the_disruption_budget_allows_the_loss_of_one_worker(overlay: str) -> None:
    (budget,) = (each for each in rendered(overlay) if each["kind"] == "PodDisruptionBudget")
    groups = ray_service(overlay)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # A number, since Kubernetes does not know the size of a group that KubeRay scales.
    assert budget["spec"]["minAvailable"] == sum(each["minReplicas"] for each in groups) - 1
    assert budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "worker"


def test_the_quickstart_names_every_secret_that_an_operator_must_create() -> None:
    text = (ROOT / "docs" / "aks.md").read_text()
    used = set(
        re.findall(
            r"earth2serve-(?:store|redis|callers|weights)",
            json.dumps([rendered(overlay) for overlay in ON_AZURE]),
        )
    )
    assert used == {f"earth2serve-{name}" for name in ("store", "redis", "callers", "weights")}
    assert [name for name in used if name not in text] == []

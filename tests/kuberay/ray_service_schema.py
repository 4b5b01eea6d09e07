"""The part of RayService's schema that config/kuberay uses; other fields are refused.

After the API reference of KubeRay 1.6 (`ray.io/v1`: RayServiceSpec, RayClusterSpec, HeadGroupSpec,
WorkerGroupSpec, GcsFaultToleranceOptions, AutoscalerOptions, AuthOptions). The schema of the custom
resource is part of KubeRay's Helm chart and Go module; no package of PyPI, npm or Debian contains
it, so look up a new field there before adding it here. Pod templates are checked with Kubernetes'
schemas.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT: Schema = {"type": "string"}
_TRUTH: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
# Options of `ray start`; numbers are strings, too.
_START: Schema = {"type": "object", "additionalProperties": _TEXT}
_POD: Schema = {"type": "object", "required": ["spec"]}
_SECRET: Schema = _object(
    ("valueFrom",),
    valueFrom=_object(
        ("secretKeyRef",), secretKeyRef=_object(("name", "key"), name=_TEXT, key=_TEXT)
    ),
)

_CLUSTER = _object(
    ("headGroupSpec", "workerGroupSpecs", "rayVersion"),
    rayVersion=_TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=_TRUTH,
    autoscalerOptions=_object(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=_COUNT,
        securityContext={"type": "object"},
        resources={"type": "object"},
    ),
    gcsFaultToleranceOptions=_object(("redisAddress",), redisAddress=_TEXT, redisPassword=_SECRET),
    headGroupSpec=_object(("rayStartParams", "template"), rayStartParams=_START, template=_POD),
    workerGroupSpecs={
        "type": "array",
        "minItems": 1,
        "items": _object(
            ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            # It becomes part of names of pods and of labels' values.
            groupName={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas={"type": "integer", "minimum": 1},
            rayStartParams=_START,
            template=_POD,
        ),
    },
)

RAY_SERVICE = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=_object(("name", "namespace"), name=_TEXT, namespace=_TEXT),
    spec=_object(
        ("serveConfigV2", "rayClusterConfig"),
        serveConfigV2={"type": "string", "minLength": 1},
        upgradeStrategy=_object(
            ("type",), type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}
        ),
        rayClusterDeletionDelaySeconds=_COUNT,
        excludeHeadPodFromServeSvc=_TRUTH,
        rayClusterConfig=_CLUSTER,
    ),
)

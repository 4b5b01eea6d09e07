"""`build`: the settings become a Ray Serve application."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.serve import Application, Deployment

from deployments.azure.options import AzureOptions, BlobResultsOptions
from deployments.blob_uploader.deployment import UPLOADS, BlobUploader
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.conductor.deployment import Conductor
from deployments.conductor.options import ConductorOptions, RetentionOptions
from deployments.custom_workflow.deployment import CustomWorkflow
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.geocatalog.deployment import GeoCatalog
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.initial_conditions.deployment import InitialConditions
from deployments.initial_conditions.options import SourceOptions
from deployments.models.fcn3 import FCN3
from deployments.models.options import FCN3Options, StormScopeOptions
from deployments.models.stormscope import StormScope
from deployments.packager.deployment import WRITERS, Packager
from deployments.runtime.import_path import LoaderOptions
from serve_app.http.deployment import Ingress
from serve_app.http.options import IngressOptions
from serve_app.settings.preflight import check_certificates, check_installed, check_nodes
from serve_app.settings.section import SYNTHETIC
from serve_app.settings.sections import (
    CustomWorkflowSettings,
    DataSourceSettings,
    InterpolationSettings,
    ModelSettings,
)
from serve_app.settings.settings import Settings, parse_settings
from workflows import WORKFLOWS
from workflows.fcn3 import VARIABLES as FCN3_VARIABLES
from workflows.stormscope import VARIABLES as GOES_VARIABLES

logger = logging.getLogger("ray.serve")

WAITING = {"num_cpus": 0.1, "num_gpus": 0}
"""For deployments that mostly wait: a node's cores are for the Packager and the models."""
WRITING = {"num_cpus": 0.4, "num_gpus": 0}
RESULTS = "results"
"""What readiness calls the container of the results."""
KEPT_ANALYSES = 16
"""Executions beyond those that run whose initial conditions stay on a disk that is not cleaned with
their results: 300 MB each at 0.25 degrees."""
UPLOADING = {"num_cpus": 0.2, "num_gpus": 0}


def build(args: dict[str, Any]) -> Application:
    """Build the application: only the deployments that callable workflows need.

    Parameters
    ----------
    args : dict
        What stands under ``args`` in the YAML, see `serve_app.settings.settings.Settings`.

    Raises
    ------
    SettingsError
        Naming what is wrong and what would be allowed.
    """
    settings = parse_settings(args, os.environ)
    check_installed(settings)
    check_certificates(settings)
    if ray.is_initialized():
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        check_nodes(settings, sum(node["Alive"] for node in nodes))
    logger.info("settings: %s", settings.summary())
    workflows = [WORKFLOWS[name] for name in settings.callable_workflows if name in WORKFLOWS]
    models = sorted({name for workflow in workflows for name in workflow.models})
    sources = sorted({name for workflow in workflows for name in workflow.data_sources})

    blob = _blob_results(settings)
    packager = _bind(
        Packager,
        WRITING,
        settings.packager.replicas,
        blob or settings.results_dir,
        settings.work_dir,
        # An export keeps its place from the first step to the last, and writers need some as well.
        max_calls=WRITERS + sum(settings.max_running.values()),
    )
    deployments = {"packager": packager}
    analyses: tuple[Application, ...] = ()
    if sources:
        deployments["initial_conditions"] = _initial_conditions(sources, settings)
        if blob is not None:
            # Nobody says that the nodes share a disk: models ask for what it fetched.
            analyses = (deployments["initial_conditions"],)
    deployments |= {
        name: MODELS[name](settings, packager, *analyses) for name in models if name in MODELS
    }
    custom = {each.resolved_name: _custom(each, settings) for each in settings.custom_workflows}
    components = dict.fromkeys(sources, "initial_conditions") | {
        name: SERVED_BY.get(name, name) for name in (*models, *custom)
    }
    # A folder is made where it is missing; a container is not.
    places = (RESULTS,) if blob is not None else ()
    components |= dict.fromkeys(places, "packager")
    delivery = _delivery(settings)
    store_url = settings.resolved_store_url
    conductor = _bind(
        Conductor,
        WAITING,
        1,
        ConductorOptions(
            store_url=store_url,
            max_running=settings.max_running,
            replicas=settings.models.replicas,
            models_share_gpu=settings.models.in_turn,
            retention=RetentionOptions(
                keep_s=settings.results.keep_s,
                keep_record_s=settings.results.keep_record_s,
                keep_failed_s=settings.results.keep_failed_s,
            ),
        ),
        deployments | custom | delivery,
        components,
    )
    options = IngressOptions(
        store_url=store_url,
        results_dir=settings.results_dir,
        blob_results=blob,
        exposed=settings.listed_workflows,
        warmup=settings.workflows.warmup,
        grid=settings.models.fcn3.grid,
        regional_grid=settings.models.stormscope.grid,
        max_queued=settings.queue.max_size,
        max_output_bytes=int(settings.limits.max_output_gb * 1e9),
        quota_bytes=settings.results.quota_bytes,
        min_free_bytes=int(settings.results.min_free_gb * 1e9),
        max_body_bytes=int(settings.limits.max_body_mb * 1e6),
        tokens_file=settings.auth.tokens_file,
        allow_origins=settings.cors.allow_origins,
        delivery=settings.delivery_rules,
        signed_url_s=settings.azure.blob.signed_url_s,
        components={w.name: (*w.models, *w.data_sources, *places) for w in workflows}
        | {name: (name,) for name in custom},
        custom={each.resolved_name: each.output_format for each in settings.custom_workflows},
    )
    uploader = delivery.get("blob_uploader")
    return _bind(Ingress, WAITING, settings.ingress.replicas, options, conductor, custom, uploader)


def _bind(
    deployment: type[Any],
    resources: dict[str, float],
    replicas: int,
    *args: Any,
    name: str | None = None,
    max_calls: int | None = None,
) -> Application:
    configured = cast(Deployment, deployment)
    configured = configured.options(
        name=name or configured.name,
        num_replicas=replicas,
        ray_actor_options=resources,
        max_ongoing_requests=max_calls or configured.max_ongoing_requests,
    )
    return configured.bind(*args)


def _initial_conditions(sources: Sequence[str], settings: Settings) -> Application:
    options = [_source(name, settings) for name in sources]
    if settings.results_container is None:
        # What it fetches lies with the execution's other working files, and goes with them.
        return _bind(InitialConditions, WAITING, 1, options, settings.work_dir)
    folder = settings.work_dir / "initial_conditions"
    keep = sum(settings.max_running.values()) + KEPT_ANALYSES
    return _bind(InitialConditions, WAITING, 1, options, folder, keep)


def _blob_results(settings: Settings) -> BlobResultsOptions | None:
    """Tell where results lie, if that is a container."""
    container = settings.results_container
    if container is None:
        return None
    return BlobResultsOptions(
        container=container, azure=_account(settings), scratch_dir=settings.work_dir / "scratch"
    )


def _account(settings: Settings) -> AzureOptions:
    azure = settings.azure
    return AzureOptions(
        credential=azure.credential.loader,
        credential_options=azure.credential.options,
        ca_file=azure.ca_file,
    )


def _fcn3(settings: Settings, packager: Application, *analyses: Application) -> Application:
    model = settings.models.fcn3
    hourly = any(
        INTERPOLATION in WORKFLOWS[name].models
        for name in settings.callable_workflows
        if name in WORKFLOWS
    )
    interpolation = _loader(
        INTERPOLATION,
        settings.models.interpolation,
        "deployments.synthetic.stormscope:load_interpolation",
        {},
    )
    options = FCN3Options(
        loader=_loader(
            "fcn3", model, "deployments.synthetic.fcn3:load_fcn3", model.grid.model_dump()
        ),
        grid=model.grid,
        input_variables=FCN3_VARIABLES,
        window_steps=settings.packager.window_steps,
        checkpoint_steps=model.checkpoint_steps,
        interpolation=interpolation if hourly else None,
        gpu_locks=_gpu_locks(settings),
    )
    resources = {"num_cpus": 0.2, "num_gpus": model.resolved_num_gpus}
    return _bind(FCN3, resources, model.replicas, options, packager, *analyses)


def _stormscope(settings: Settings, packager: Application, *analyses: Application) -> Application:
    model = settings.models.stormscope
    grid = model.grid.model_dump()
    options = StormScopeOptions(
        loader=_loader(
            "stormscope", model, "deployments.synthetic.stormscope:load_stormscope", grid
        ),
        grid=model.grid,
        conditioning_grid=settings.models.fcn3.grid,
        input_variables=GOES_VARIABLES,
        window_steps=settings.packager.window_steps,
        gpu_locks=_gpu_locks(settings),
    )
    resources = {"num_cpus": 0.2, "num_gpus": model.resolved_num_gpus}
    return _bind(StormScope, resources, model.replicas, options, packager, *analyses)


def _gpu_locks(settings: Settings) -> Path | None:
    return settings.work_dir / "turns" if settings.models.in_turn else None


def _custom(each: CustomWorkflowSettings, settings: Settings) -> Application:
    options = CustomWorkflowOptions(
        name=each.resolved_name,
        name_is_given=each.name is not None,
        path=each.path,
        config=each.config,
        results_dir=settings.results_dir,
        work_dir=settings.work_dir,
        max_output_bytes=int(settings.limits.max_output_gb * 1e9),
        window_bytes=each.window_mb * 10**6,
        cancel_grace_s=each.cancel_grace_s,
    )
    # Almost none: it computes on a GPU, and a small machine shall hold many classes.
    resources = {"num_cpus": 0.01, "num_gpus": each.num_gpus}
    return _bind(CustomWorkflow, resources, each.replicas, options, name=each.deployment)


def _delivery(settings: Settings) -> dict[str, Application]:
    """Build what talks to Azure: only what has somewhere to go."""
    azure, account = settings.azure, _account(settings)
    built = {}
    if azure.blob.allowed_containers:
        upload = BlobUploaderOptions(
            azure=account,
            allowed=azure.blob.containers,
            ahead=azure.blob.upload_ahead,
            time_limit_s=azure.blob.time_limit_s,
        )
        built["blob_uploader"] = _bind(
            BlobUploader,
            UPLOADING,
            azure.blob.replicas,
            upload,
            settings.results_dir,
            settings.work_dir,
            # One that follows an execution keeps its place from the first step to the last.
            max_calls=UPLOADS + sum(settings.max_running.values()),
        )
    if azure.geocatalog.allowed:
        register = GeoCatalogOptions(
            azure=account,
            api_version=azure.geocatalog.api_version,
            allowed=azure.geocatalog.allowed,
            time_limit_s=azure.geocatalog.time_limit_s,
        )
        built["geocatalog"] = _bind(GeoCatalog, WAITING, 1, register)
    return built


MODELS: dict[str, Callable[..., Application]] = {
    "fcn3": _fcn3,
    "stormscope": _stormscope,
}
"""How each model's deployment is built."""
INTERPOLATION = "interpolation"
SERVED_BY = {INTERPOLATION: "fcn3"}
"""Models that have no deployment of their own."""


def _source(name: str, settings: Settings) -> SourceOptions:
    chosen: DataSourceSettings
    if name == "ifs":
        chosen = settings.data_sources.ifs
        grid = settings.models.fcn3.grid.model_dump()
        loader = _loader(name, chosen, "deployments.synthetic.fcn3:load_ifs", grid)
    else:
        chosen = settings.data_sources.goes
        grid = settings.models.stormscope.grid.model_dump()
        loader = _loader(name, chosen, "deployments.synthetic.stormscope:load_goes", grid)
        loader = loader.model_copy(update={"options": {**loader.options, "satellite": name}})
    return SourceOptions(**loader.model_dump(), timeout_s=chosen.timeout_s)


def _loader(
    name: str,
    chosen: ModelSettings | InterpolationSettings | DataSourceSettings,
    synthetic: str,
    synthetic_options: dict[str, Any],
) -> LoaderOptions:
    if chosen.loader == SYNTHETIC:
        return LoaderOptions(
            name=name, loader=synthetic, options={**synthetic_options, **chosen.options}
        )
    return LoaderOptions(name=name, loader=chosen.loader, options=chosen.options)

"""`build`: the Ray Serve application that the settings describe."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
from ray.serve import Application, Deployment

from deployments.blob_uploader.deployment import UPLOADS, BlobUploader
from deployments.blob_uploader.options import BlobUploaderOptions
from deployments.conductor.deployment import Conductor
from deployments.conductor.options import ConductorOptions
from deployments.custom_workflow.deployment import CustomWorkflow
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.geocatalog.deployment import GeoCatalog
from deployments.geocatalog.options import GeoCatalogOptions
from deployments.initial_conditions.deployment import InitialConditions
from deployments.initial_conditions.options import SourceOptions
from deployments.models.fcn3 import FCN3
from deployments.models.options import FCN3Options, ModelOptions, StormScopeOptions
from deployments.models.prognostic import Prognostic
from deployments.models.stormscope import StormScope
from deployments.packager.deployment import WRITERS, Packager
from deployments.runtime.import_path import LoaderOptions
from serve_app.http.deployment import Ingress
from serve_app.http.options import IngressOptions
from serve_app.settings.data_sources import DataSourceSettings
from serve_app.settings.models import ModelSettings
from serve_app.settings.parsing import parse_settings
from serve_app.settings.preflight import (
    check_certificates,
    check_installed,
    check_nodes,
    find_missing,
)
from serve_app.settings.settings import Settings
from serve_app.settings.workflows import CustomWorkflowSettings

logger = logging.getLogger("ray.serve")

Resources = dict[str, float]

# Deployments that mostly wait take little, to leave a node's cores to the Packager and the models.
WAITING: Resources = {"num_cpus": 0.1, "num_gpus": 0}
WRITING: Resources = {"num_cpus": 0.4, "num_gpus": 0}
UPLOADING: Resources = {"num_cpus": 0.2, "num_gpus": 0}
MODEL_CPUS = 0.2
CUSTOM_CPUS = 0.01
"""Almost none: the class computes on a GPU, and a small machine must be able to hold many."""

MODEL = "Model-"
"""Prefix of the names of the deployments that run models of the operator."""
INTERPOLATION = "interpolation"
SERVED_BY = {INTERPOLATION: "fcn3"}
"""Models without a deployment of their own, and the one that runs them."""
RESULTS = "results"
"""Component of readiness that stands for the container of the results."""
KEPT_ANALYSES = 16
"""Executions, beyond the running ones, whose initial conditions are kept if results are stored in a
container and nothing else cleans the disk: 300 MB each at 0.25 degrees."""


def build(args: dict[str, Any]) -> Application:
    """Build the application, with only the deployments that callable workflows need.

    Parameters
    ----------
    args : dict
        The value of ``args`` in the YAML file, see `serve_app.settings.settings.Settings`.

    Raises
    ------
    SettingsError
        Naming each problem and what is allowed.
    """
    settings = parse_settings(args, os.environ)
    check_installed(settings)
    check_certificates(settings)
    if ray.is_initialized():
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        check_nodes(settings, sum(node["Alive"] for node in nodes))
    for finding in find_missing(settings):
        logger.warning("args.%s", finding)
    logger.info("settings: %s", settings.summary())
    built_in, forecasts = settings.built_in_workflows, settings.forecasts
    models, sources = settings.used_models, settings.used_data_sources
    storage = settings.storage

    packager = _bind(
        Packager,
        WRITING,
        settings.packager.replicas,
        storage,
        # An export keeps its slot until the last step, and the writers need slots, too.
        max_calls=WRITERS + sum(settings.max_running.values()),
    )
    deployments = {"packager": packager}
    handles = [packager]
    if sources:
        deployments["initial_conditions"] = _initial_conditions(sources, settings)
        if storage.blob is not None:
            # The nodes may share no disk, so models fetch the states through a handle.
            handles.append(deployments["initial_conditions"])
    deployments |= {name: MODELS[name](settings, *handles) for name in models if name in MODELS}
    deployments |= {
        name: _own_model(name, settings, *handles) for name in models if name in settings.models.own
    }
    custom = {
        workflow.resolved_name: _custom_workflow(workflow, settings)
        for workflow in settings.custom_workflows
    }
    components = dict.fromkeys(sources, "initial_conditions") | {
        name: SERVED_BY.get(name, name) for name in (*models, *custom)
    }
    # A missing folder is created; a missing container is not.
    results = () if storage.blob is None else (RESULTS,)
    components |= dict.fromkeys(results, "packager")
    delivery = _delivery(settings)
    conductor = _bind(
        Conductor,
        WAITING,
        1,
        ConductorOptions(
            store_url=settings.resolved_store_url,
            max_running=settings.max_running,
            replicas=settings.models.replicas,
            models_share_gpu=settings.models.in_turn,
            retention=settings.results.retention,
        ),
        deployments | custom | delivery,
        components,
    )
    options = settings.to_options(
        IngressOptions,
        store_url=settings.resolved_store_url,
        storage=storage,
        exposed=settings.listed_workflows,
        warmup=settings.workflows.warmup,
        custom={
            workflow.resolved_name: workflow.output_format for workflow in settings.custom_workflows
        },
        grid=settings.models.fcn3.grid,
        regional_grid=settings.models.stormscope.grid,
        delivery=settings.delivery_rules,
        signed_url_s=settings.azure.blob.signed_url_s,
        forecasts=forecasts,
        components={w.name: (*w.models, *w.data_sources, *results) for w in built_in}
        | {each.name: (each.model, *each.data_sources, *results) for each in forecasts}
        | {name: (name,) for name in custom},
    )
    uploader = delivery.get("blob_uploader")
    return _bind(Ingress, WAITING, settings.ingress.replicas, options, conductor, custom, uploader)


def _bind(
    deployment: type[Any],
    resources: Resources,
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
        # Its files are among the execution's other working files, and are removed with them.
        return _bind(InitialConditions, WAITING, 1, options, settings.work_dir)
    folder = settings.work_dir / "initial_conditions"
    keep = sum(settings.max_running.values()) + KEPT_ANALYSES
    return _bind(InitialConditions, WAITING, 1, options, folder, keep)


def _source(name: str, settings: Settings) -> SourceOptions:
    models, sources = settings.models, settings.data_sources
    section: DataSourceSettings
    if name in sources.own:
        section = sources.own[name]
        loader = section.loader_options(name)
    elif name == "ifs":
        section, loader = sources.ifs, sources.ifs.loader_options(name, models.fcn3.grid)
    else:
        section = sources.goes
        loader = section.loader_options(name, models.stormscope.grid, satellite=name)
    return section.to_options(SourceOptions, **loader.model_dump())


def _own_model(name: str, settings: Settings, *handles: Application) -> Application:
    model = settings.models.own[name]
    options = model.to_options(
        ModelOptions,
        loader=model.loader_options(name),
        window_steps=settings.packager.window_steps,
        gpu_locks=settings.gpu_locks,
        **_forecast_parts(name, settings),
    )
    resources = {"num_cpus": MODEL_CPUS, "num_gpus": model.resolved_num_gpus}
    return _bind(Prognostic, resources, model.replicas, options, *handles, name=f"{MODEL}{name}")


def _forecast_parts(model: str, settings: Settings) -> dict[str, Any]:
    """Return what a model's replicas load besides it: diagnostics and perturbations."""
    forecasts = [each for each in settings.forecasts if each.model == model]
    return {
        "diagnostics": {
            each.name: tuple(
                LoaderOptions(name="", loader=part.loader, options=part.options)
                for part in each.diagnostics
            )
            for each in forecasts
        },
        "perturbations": tuple(each.perturbation for each in forecasts if each.perturbation),
    }


def _fcn3(settings: Settings, *handles: Application) -> Application:
    model = settings.models.fcn3
    conditions = any(INTERPOLATION in workflow.models for workflow in settings.built_in_workflows)
    options = model.to_options(
        FCN3Options,
        loader=model.loader_options("fcn3", model.grid),
        window_steps=settings.packager.window_steps,
        interpolation=settings.models.interpolation.loader_options(INTERPOLATION)
        if conditions
        else None,
        gpu_locks=settings.gpu_locks,
        **_forecast_parts("fcn3", settings),
    )
    return _bind_model(FCN3, model, options, *handles)


def _stormscope(settings: Settings, *handles: Application) -> Application:
    model = settings.models.stormscope
    options = model.to_options(
        StormScopeOptions,
        loader=model.loader_options("stormscope", model.grid),
        conditioning_grid=settings.models.fcn3.grid,
        window_steps=settings.packager.window_steps,
        gpu_locks=settings.gpu_locks,
    )
    return _bind_model(StormScope, model, options, *handles)


def _bind_model(deployment: type[Any], model: ModelSettings, *args: Any) -> Application:
    resources = {"num_cpus": MODEL_CPUS, "num_gpus": model.resolved_num_gpus}
    return _bind(deployment, resources, model.replicas, *args)


MODELS: dict[str, Callable[..., Application]] = {"fcn3": _fcn3, "stormscope": _stormscope}
"""Builder of each model's deployment."""


def _custom_workflow(workflow: CustomWorkflowSettings, settings: Settings) -> Application:
    options = workflow.to_options(
        CustomWorkflowOptions,
        name=workflow.resolved_name,
        name_is_given=workflow.name is not None,
        storage=settings.storage,
        max_output_bytes=settings.limits.max_output_bytes,
    )
    resources = {"num_cpus": CUSTOM_CPUS, "num_gpus": workflow.num_gpus}
    return _bind(CustomWorkflow, resources, workflow.replicas, options, name=workflow.deployment)


def _delivery(settings: Settings) -> dict[str, Application]:
    """Return the deployments that deliver to Azure, if there are allowed destinations."""
    blob, geocatalog = settings.azure.blob, settings.azure.geocatalog
    account = settings.azure.account
    deployments = {}
    if blob.allowed_containers:
        deployments["blob_uploader"] = _bind(
            BlobUploader,
            UPLOADING,
            blob.replicas,
            blob.to_options(BlobUploaderOptions, azure=account, allowed=blob.containers),
            settings.storage,
            # An upload ahead keeps its slot until the last step of its execution.
            max_calls=UPLOADS + sum(settings.max_running.values()),
        )
    if geocatalog.allowed:
        register = geocatalog.to_options(GeoCatalogOptions, azure=account)
        deployments["geocatalog"] = _bind(GeoCatalog, WAITING, 1, register)
    return deployments

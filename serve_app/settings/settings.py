"""All settings under ``args`` of the application, and what follows from them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from deployments.results.options import BlobResultsOptions, StorageOptions
from deployments.runtime.option_types import FilePath, Flag, check_path
from serve_app.http.options import AuthOptions, CorsOptions, LimitOptions
from serve_app.settings.azure import AzureSettings
from serve_app.settings.data_sources import DataSourcesSettings
from serve_app.settings.models import ModelsSettings
from serve_app.settings.results import ResultsSettings
from serve_app.settings.section import Section
from serve_app.settings.serving import IngressSettings, PackagerSettings, QueueSettings
from serve_app.settings.workflows import CustomWorkflowSettings, WorkflowSettings
from workflows import WORKFLOWS
from workflows.base import Workflow
from workflows.delivery import Container, DeliveryRules, parse_container, parse_results_container
from workflows.forecast import ForecastDeclaration

PREPARED_AHEAD = 3
"""Executions of a workflow that run beyond the replicas of its model."""


class Settings(Section):
    """Everything under ``args``."""

    data_dir: FilePath = Field(
        default=Path("var"),
        description="Folder of the execution store, working files and results, relative to where "
        "the server is started.",
    )
    store_url: SecretStr | None = Field(
        default=None,
        description="Execution store: sqlite:///path or postgresql+psycopg://user@host/database. "
        "Null is SQLite in data_dir.",
    )
    results_url: str | None = Field(
        default=None,
        description="Results: file:///path, or az://ACCOUNT/CONTAINER/FOLDER in Blob Storage (in "
        "another cloud https://ACCOUNT.blob.…/CONTAINER/FOLDER). Null is the folder results in "
        "data_dir.",
    )
    results: ResultsSettings = ResultsSettings()
    models: ModelsSettings = ModelsSettings()
    data_sources: DataSourcesSettings = DataSourcesSettings()
    workflows: WorkflowSettings = WorkflowSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitOptions = LimitOptions()
    auth: AuthOptions = AuthOptions()
    cors: CorsOptions = CorsOptions()
    ingress: IngressSettings = IngressSettings()
    packager: PackagerSettings = PackagerSettings()
    azure: AzureSettings = AzureSettings()
    shared_filesystem: Flag = Field(
        default=False,
        description="Declares that data_dir is the same folder on every node. Without it, SQLite "
        "or results on disk are refused on a cluster of several nodes.",
    )

    @field_validator("store_url")
    @classmethod
    def _store_can_be_opened(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return value
        allowed = "must be sqlite:///path or postgresql+psycopg://user@host/database"
        try:
            url = sa.make_url(value.get_secret_value())
        except (sa.exc.ArgumentError, ValueError):
            # Not chained: SQLAlchemy quotes the URL, password included.
            raise ValueError(allowed) from None
        if url.drivername not in ("sqlite", "postgresql+psycopg"):
            raise ValueError(allowed)
        if not url.database or url.database == ":memory:":
            raise ValueError(f"names no database that several processes can open; {allowed}")
        if url.port is not None and not 0 < url.port < 65_536:
            raise ValueError("the port must be between 1 and 65535")
        if url.drivername == "sqlite":
            check_path(Path(url.database))
        return value

    @field_validator("workflows")
    @classmethod
    def _custom_workflows_have_a_disk(
        cls, value: WorkflowSettings, info: ValidationInfo
    ) -> WorkflowSettings:
        if value.custom and _is_container(info.data.get("results_url")):
            raise ValueError(
                "custom: a workflow class of your own writes its results to a disk; serve it by a "
                "server whose args.results_url is a folder"
            )
        return value

    @field_validator("workflows")
    @classmethod
    def _forecasts_have_their_parts(
        cls, value: WorkflowSettings, info: ValidationInfo
    ) -> WorkflowSettings:
        if {"models", "data_sources"} <= info.data.keys():  # else invalid: the names are unknown
            value.check_parts(info.data["models"].own, info.data["data_sources"].own)
        return value

    @field_validator("azure")
    @classmethod
    def _results_are_in_one_container(
        cls, value: AzureSettings, info: ValidationInfo
    ) -> AzureSettings:
        if value.blob.allowed_containers and _is_container(info.data.get("results_url")):
            raise ValueError(
                "blob.allowed_containers: results are stored in the container of "
                "args.results_url, and are not copied to others; leave it out"
            )
        return value

    @field_validator("azure")
    @classmethod
    def _collections_are_of_workflows(
        cls, value: AzureSettings, info: ValidationInfo
    ) -> AzureSettings:
        if "workflows" in info.data:
            known = info.data["workflows"].known()
            unknown = value.geocatalog.collections.keys() - set(known)
            if unknown:
                raise ValueError(
                    f"geocatalog.collections: unknown workflow {min(unknown)!r}; known are "
                    f"{', '.join(known)}"
                )
        return value

    @field_validator("results_url")
    @classmethod
    def _results_can_be_written(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if value.startswith(("az://", "https://")):
            parse_results_container(value)
        elif not re.fullmatch(r"file://(localhost)?/[^?#]+", value):
            raise ValueError("must be file:///path or az://ACCOUNT/CONTAINER/FOLDER")
        else:
            check_path(_file_path(value))
        return value

    @property
    def listed_workflows(self) -> tuple[str, ...]:
        """Names of the workflows that are listed."""
        if self.workflows.exposed:
            return tuple(dict.fromkeys(self.workflows.exposed))
        known = self.workflows.known()
        return tuple(name for name in known if name not in self.workflows.warmup)

    @property
    def callable_workflows(self) -> tuple[str, ...]:
        """Names of the workflows that can be called."""
        return tuple(dict.fromkeys((*self.listed_workflows, *self.workflows.warmup)))

    @property
    def built_in_workflows(self) -> tuple[type[Workflow], ...]:
        """The callable built-in workflows."""
        return tuple(WORKFLOWS[name] for name in self.callable_workflows if name in WORKFLOWS)

    @property
    def forecasts(self) -> tuple[ForecastDeclaration, ...]:
        """The callable forecasts that are declared."""
        declared = self.workflows.forecasts
        return tuple(
            declared[name].declaration(name) for name in self.callable_workflows if name in declared
        )

    @property
    def used_models(self) -> list[str]:
        """Names of the models that the callable workflows use."""
        built_in = {name for workflow in self.built_in_workflows for name in workflow.models}
        return sorted(built_in | {forecast.model for forecast in self.forecasts})

    @property
    def used_data_sources(self) -> list[str]:
        """Names of the data sources that the callable workflows use."""
        built_in = {name for workflow in self.built_in_workflows for name in workflow.data_sources}
        declared = {name for forecast in self.forecasts for name in forecast.data_sources}
        return sorted(built_in | declared)

    @property
    def custom_workflows(self) -> tuple[CustomWorkflowSettings, ...]:
        """The callable custom workflows."""
        callable_names = self.callable_workflows
        return tuple(
            workflow
            for workflow in self.workflows.custom
            if workflow.resolved_name in callable_names
        )

    @property
    def max_running(self) -> dict[str, int]:
        """Executions that run at once, by callable workflow.

        A built-in workflow runs some more than its model has replicas: their initial conditions
        are fetched in advance, and the members of a small execution run between those of large
        ones. A custom workflow prepares nothing in advance.
        """
        replicas = self.models.replicas
        defaults = {
            name: max(replicas.get(model, 0) for model in workflow.models) + PREPARED_AHEAD
            for name, workflow in WORKFLOWS.items()
        }
        defaults |= {
            forecast.name: replicas[forecast.model] + PREPARED_AHEAD for forecast in self.forecasts
        }
        defaults |= {
            workflow.resolved_name: workflow.replicas for workflow in self.custom_workflows
        }
        return {name: self.queue.max_running or defaults[name] for name in self.callable_workflows}

    @property
    def resolved_store_url(self) -> str:
        """URL of the execution store; it may contain a password."""
        if self.store_url is not None:
            return self.store_url.get_secret_value()
        return _sqlite_url(self.data_dir / "executions.sqlite")

    @property
    def results_container(self) -> Container | None:
        """Container of the results in Blob Storage; None if they are stored in `results_dir`."""
        if self.results_url is None or not _is_container(self.results_url):
            return None
        return parse_results_container(self.results_url, self.azure.blob.emulator)

    @property
    def results_dir(self) -> Path:
        """Folder of the results, unless they are stored in a container."""
        if self.results_url is not None and not _is_container(self.results_url):
            return _file_path(self.results_url)
        return self.data_dir / "results"

    @property
    def storage(self) -> StorageOptions:
        """Where results and working files are stored."""
        blob = None
        if self.results_container is not None:
            blob = BlobResultsOptions(
                container=self.results_container,
                azure=self.azure.account,
                scratch_dir=self.work_dir / "scratch",
            )
        return StorageOptions(results_dir=self.results_dir, work_dir=self.work_dir, blob=blob)

    @property
    def delivery_rules(self) -> DeliveryRules:
        """Deliveries that a request may ask for."""
        blob, geocatalog = self.azure.blob, self.azure.geocatalog
        default = blob.default_container
        return DeliveryRules(
            containers=blob.containers,
            default_container=parse_container(default, blob.emulator) if default else None,
            emulator=blob.emulator,
            catalogs=geocatalog.allowed,
            default_catalog=geocatalog.default_catalog,
            collections=geocatalog.collections,
            allowed_collections=geocatalog.allowed_collections,
            results_in_blob=self.results_container is not None,
        )

    @property
    def work_dir(self) -> Path:
        """Folder of the working files of running executions."""
        return self.data_dir / "work"

    @property
    def gpu_locks(self) -> Path | None:
        """Folder of the locks of GPUs that models share; None if they share none."""
        return self.work_dir / "turns" if self.models.in_turn else None

    def resolved(self, base: Path) -> Self:
        """Return the settings with absolute paths; relative ones start from `base`."""
        store = self.store_url and sa.make_url(self.store_url.get_secret_value())
        tokens = self.auth.tokens_file
        ca_file = self.azure.ca_file
        return self.model_copy(
            update={
                "data_dir": _absolute(base, self.data_dir),
                "store_url": SecretStr(_sqlite_url(_absolute(base, Path(store.database or ""))))
                if store and store.drivername.startswith("sqlite")
                else self.store_url,
                "auth": self.auth.model_copy(
                    update={"tokens_file": tokens and _absolute(base, tokens)}
                ),
                "azure": self.azure.model_copy(
                    update={"ca_file": ca_file and _absolute(base, ca_file)}
                ),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Return the resolved settings for the log, without passwords and values of options."""
        values = self.model_dump(mode="json")
        models = values["models"]
        loaders = [each for each in models.values() if isinstance(each, dict)]
        for forecast in values["workflows"]["forecasts"].values():
            loaders += [
                each for each in (forecast["perturbation"], *forecast["diagnostics"]) if each
            ]
        for loader in (*loaders, *values["data_sources"].values(), values["azure"]["credential"]):
            loader["options"] = sorted(loader["options"])
        for name in ("fcn3", "stormscope", *self.models.own):
            model = self.models.own.get(name) or getattr(self.models, name)
            models[name]["num_gpus"] = model.resolved_num_gpus
        for custom, workflow in zip(
            values["workflows"]["custom"], self.workflows.custom, strict=True
        ):
            custom |= {"config": sorted(custom["config"]), "name": workflow.resolved_name}
        values["queue"]["max_running"] = self.max_running
        return values | {
            "store_url": sa.make_url(self.resolved_store_url).render_as_string(hide_password=True),
            "results_url": self.results_container.url
            if self.results_container
            else self.results_dir.as_uri(),
        }


def _is_container(results_url: str | None) -> bool:
    return results_url is not None and not results_url.startswith("file:")


def _file_path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _absolute(base: Path, path: Path) -> Path:
    return Path(os.path.normpath(base / path.expanduser()))


def _sqlite_url(path: Path) -> str:
    return sa.URL.create("sqlite", database=str(path)).render_as_string()

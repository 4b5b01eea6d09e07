"""Everything that can be set under ``args`` of the application, and what follows from it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from pydantic import (
    Field,
    SecretStr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from serve_app.settings.azure import AzureSettings
from serve_app.settings.findings import Finding, Places, explain, find, known_places
from serve_app.settings.results import ResultsSettings
from serve_app.settings.section import Section
from serve_app.settings.sections import (
    AuthSettings,
    CorsSettings,
    CustomWorkflowSettings,
    DataSourcesSettings,
    IngressSettings,
    LimitSettings,
    ModelsSettings,
    PackagerSettings,
    QueueSettings,
    WorkflowSettings,
)
from workflows import WORKFLOWS
from workflows.delivery import Container, DeliveryRules, parse_results_container

DEPLOYMENTS = (
    *("Ingress", "Conductor", "InitialConditions", "FCN3", "StormScope", "Packager"),
    *("BlobUploader", "GeoCatalog"),
)
"""Names of the deployments, as ``deployments:`` in a configuration file may name them; each
workflow of a user's own has one more."""


AHEAD = 3
"""Executions that run although all replicas have one to work for."""


class SettingsError(ValueError):
    """A configuration that cannot be served; one line for each thing that is wrong."""


class Settings(Section):
    """Everything under ``args``."""

    data_dir: Path = Field(
        default=Path("var"),
        description="Folder of the execution store and the results unless named below.",
    )
    store_url: SecretStr | None = Field(
        default=None,
        description="Execution store: sqlite:///path or postgresql+psycopg://user@host/database; "
        "null is SQLite in data_dir.",
    )
    results_url: str | None = Field(
        default=None,
        description="Results: file:///path, or az://ACCOUNT/CONTAINER/FOLDER in Blob Storage (of "
        "another cloud https://ACCOUNT.blob.…/CONTAINER/FOLDER); null is the folder results in "
        "data_dir.",
    )
    results: ResultsSettings = ResultsSettings()
    workflows: WorkflowSettings = WorkflowSettings()
    models: ModelsSettings = ModelsSettings()
    data_sources: DataSourcesSettings = DataSourcesSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    ingress: IngressSettings = IngressSettings()
    packager: PackagerSettings = PackagerSettings()
    azure: AzureSettings = AzureSettings()
    shared_filesystem: Annotated[bool, Strict()] = Field(
        default=False, description="True if data_dir is one and the same folder on every node."
    )

    @field_validator("store_url")
    @classmethod
    def _store_can_be_opened(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_store_url(value.get_secret_value())
        return value

    @field_validator("workflows")
    @classmethod
    def _classes_have_a_disk(
        cls, value: WorkflowSettings, info: ValidationInfo
    ) -> WorkflowSettings:
        if value.custom and _is_container(info.data.get("results_url")):
            raise ValueError(
                "custom: a workflow class of your own leaves its results on a disk; give it a "
                "server whose args.results_url is a folder"
            )
        return value

    @field_validator("azure")
    @classmethod
    def _results_are_in_one_container(
        cls, value: AzureSettings, info: ValidationInfo
    ) -> AzureSettings:
        if value.blob.allowed_containers and _is_container(info.data.get("results_url")):
            raise ValueError(
                "blob.allowed_containers: results lie in the container of args.results_url "
                "already, and are not copied to others; leave it out"
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
            raise ValueError("file:///path or az://ACCOUNT/CONTAINER/FOLDER is needed")
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
    def custom_workflows(self) -> tuple[CustomWorkflowSettings, ...]:
        """The callable workflows of users' own."""
        names = self.callable_workflows
        return tuple(each for each in self.workflows.custom if each.resolved_name in names)

    @property
    def max_running(self) -> dict[str, int]:
        """Executions that run at once, by callable workflow.

        Some more than replicas of a model of ours: the next ones are prepared, and a small one
        goes between the members of large ones. A user's class prepares nothing ahead.
        """
        replicas = self.models.replicas
        usual = {
            name: max(replicas.get(model, 0) for model in workflow.models) + AHEAD
            for name, workflow in WORKFLOWS.items()
        }
        usual |= {each.resolved_name: each.replicas for each in self.custom_workflows}
        return {name: self.queue.max_running or usual[name] for name in self.callable_workflows}

    @property
    def resolved_store_url(self) -> str:
        """URL of the execution store; it may hold a password."""
        if self.store_url is not None:
            return self.store_url.get_secret_value()
        return _sqlite_url(self.data_dir / "executions.sqlite")

    @property
    def results_container(self) -> Container | None:
        """Where in Blob Storage the results lie; None if they lie in `results_dir`."""
        if self.results_url is None or not _is_container(self.results_url):
            return None
        return parse_results_container(self.results_url, self.azure.blob.emulator)

    @property
    def results_dir(self) -> Path:
        """Folder of the results, unless they lie in a container."""
        if self.results_url is not None and not _is_container(self.results_url):
            return Path(unquote(urlsplit(self.results_url).path))
        return self.data_dir / "results"

    @property
    def delivery_rules(self) -> DeliveryRules:
        """What a request may ask for."""
        in_blob = self.results_container is not None
        return self.azure.rules.model_copy(update={"results_in_blob": in_blob})

    @property
    def work_dir(self) -> Path:
        """Folder of what an execution needs while it runs."""
        return self.data_dir / "work"

    def resolved(self, base: Path) -> Self:
        """Give the settings with every path absolute, relative ones taken from `base`."""
        store = self.store_url and sa.make_url(self.store_url.get_secret_value())
        tokens = self.auth.tokens_file
        ca_file = self.azure.ca_file
        return self.model_copy(
            update={
                "data_dir": _absolute(base, self.data_dir),
                "store_url": SecretStr(_sqlite_url(_absolute(base, Path(store.database or ""))))
                if store and store.drivername.startswith("sqlite")
                else self.store_url,
                "auth": AuthSettings(tokens_file=tokens and _absolute(base, tokens)),
                "azure": self.azure.model_copy(
                    update={"ca_file": ca_file and _absolute(base, ca_file)}
                ),
            }
        )

    def summary(self) -> dict[str, Any]:
        """Give what was resolved, for the log: no password, of loaders' options only the names."""
        values = self.model_dump(mode="json")
        in_turn = values["models"].pop("in_turn")
        loaders = *values["models"].values(), *values["data_sources"].values()
        for loader in (*loaders, values["azure"]["credential"]):
            loader["options"] = sorted(loader["options"])
        for custom, each in zip(values["workflows"]["custom"], self.workflows.custom, strict=True):
            custom |= {"config": sorted(custom["config"]), "name": each.resolved_name}
        for name in ("fcn3", "stormscope"):
            values["models"][name]["num_gpus"] = getattr(self.models, name).resolved_num_gpus
        values["models"]["in_turn"] = in_turn
        values["queue"]["max_running"] = self.max_running
        return values | {
            "store_url": sa.make_url(self.resolved_store_url).render_as_string(hide_password=True),
            "results_url": self.results_container.url
            if self.results_container
            else self.results_dir.as_uri(),
        }


def parse_settings(
    args: Mapping[str, Any], environ: Mapping[str, str], base: Path | None = None
) -> Settings:
    """Read the settings of the application.

    Parameters
    ----------
    args : mapping
        What stands under ``args`` in the configuration file.
    environ : mapping
        Environment variables; ``EXPOSED_WORKFLOWS`` is read.
    base : Path, optional
        Folder that relative paths start from; the current one by default.

    Raises
    ------
    SettingsError
        Naming every setting that is wrong, as ``python -m serve_app.check`` does.
    """
    findings = find_in_args(args, ("args",))
    exposed = [name.strip() for name in environ.get("EXPOSED_WORKFLOWS", "").split(",")]
    override: dict[str, Any] = {"exposed": [name for name in exposed if name]}
    if override["exposed"]:
        workflows = args.get("workflows")
        override["custom"] = workflows.get("custom", ()) if isinstance(workflows, Mapping) else ()
        try:
            WorkflowSettings.model_validate(override)
        except ValidationError as error:
            findings += [
                Finding(("EXPOSED_WORKFLOWS",), found.message)
                for found in explain(error, override, ())
                if found.path[:1] == ("exposed",)
            ]
    if findings:
        raise SettingsError("\n".join(map(str, findings)))
    settings = Settings.model_validate(dict(args))
    if override["exposed"]:
        workflows = settings.workflows.model_copy(update={"exposed": tuple(override["exposed"])})
        settings = settings.model_copy(update={"workflows": workflows})
    return settings.resolved(Path.cwd() if base is None else base)


def find_in_args(args: Mapping[str, Any], path: Sequence[str | int]) -> list[Finding]:
    """Find what is wrong with what stands under ``args``, itself standing at `path`."""
    return find(args, Settings, tuple(path), places())


@functools.cache
def places() -> Places:
    """List every key that a configuration may have."""
    return known_places(Settings)


def _is_container(results_url: str | None) -> bool:
    return results_url is not None and not results_url.startswith("file:")


def _absolute(base: Path, path: Path) -> Path:
    return Path(os.path.normpath(base / path.expanduser()))


def _sqlite_url(path: Path) -> str:
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def _check_store_url(value: str) -> None:
    needed = "sqlite:///path or postgresql+psycopg://user@host/database is needed"
    try:
        url = sa.make_url(value)
    except (sa.exc.ArgumentError, ValueError):
        # Not chained: SQLAlchemy quotes the URL, password included.
        raise ValueError(needed) from None
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(needed)
    if not url.database or url.database == ":memory:":
        raise ValueError(f"it names no database that several processes can open; {needed}")

"""Checks of valid settings against the machine and the cluster that they are used on."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

from serve_app.settings.findings import Finding, Path
from serve_app.settings.modules import find_module
from serve_app.settings.parsing import SettingsError
from serve_app.settings.section import SYNTHETIC
from serve_app.settings.settings import Settings

AZURE_PACKAGES = ("azure.identity", "azure.storage.blob", "aiohttp", "httpx", "obstore")
"""Modules that the extra ``azure`` installs."""


def is_installed(name: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    return find_module(name) is not None


def find_missing(
    settings: Settings, is_installed: Callable[[str], bool] = is_installed
) -> Iterator[Finding]:
    """Yield the modules of loaders and classes that are not found on this machine.

    They may exist where the replicas run, or be added while the server runs.
    """
    models, sources = settings.models, settings.data_sources
    loaders: dict[Path, str] = {
        ("models", "fcn3", "loader"): models.fcn3.loader,
        ("models", "interpolation", "loader"): models.interpolation.loader,
        ("models", "stormscope", "loader"): models.stormscope.loader,
        ("data_sources", "ifs", "loader"): sources.ifs.loader,
        ("data_sources", "goes", "loader"): sources.goes.loader,
    }
    for section, own in (("models", models.own), ("data_sources", sources.own)):
        loaders |= {(section, name, "loader"): each.loader for name, each in own.items()}
    for name, forecast in settings.workflows.forecasts.items():
        place = ("workflows", "forecasts", name)
        if forecast.perturbation is not None:
            loaders[*place, "perturbation", "loader"] = forecast.perturbation.loader
        for index, diagnostic in enumerate(forecast.diagnostics):
            loaders[*place, "diagnostics", index, "loader"] = diagnostic.loader
    loaders |= {
        ("workflows", "custom", index, "class"): workflow.path
        for index, workflow in enumerate(settings.workflows.custom)
    }
    credential = settings.azure.credential
    if "loader" in credential.model_fields_set:
        loaders["azure", "credential", "loader"] = credential.loader
    for path, loader in loaders.items():
        module = loader.partition(":")[0]
        if loader != SYNTHETIC and not is_installed(module):
            yield Finding(
                path, f"there is no module {module} here; the replicas that use it must find it"
            )


def check_installed(settings: Settings, is_installed: Callable[[str], bool] = is_installed) -> None:
    """Raise if the settings need Azure's libraries and these are not installed.

    Raises
    ------
    SettingsError
        Naming the packages and how to install them.
    """
    azure = settings.azure
    needed = azure.blob.allowed_containers or azure.geocatalog.allowed or settings.results_container
    missing = [name for name in AZURE_PACKAGES if needed and not is_installed(name)]
    if missing:
        raise SettingsError(
            f"args.azure: {', '.join(missing)} cannot be imported; install earth2serve with the "
            "packages for Azure: pip install -c constraints.txt -e '.[azure]'"
        )


def check_certificates(settings: Settings) -> None:
    """Raise if the file of certificate authorities cannot be used.

    Raises
    ------
    SettingsError
        Naming the file and the reason.
    """
    path = settings.azure.ca_file
    if path is None:
        return
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # base of the errors of ssl
        raise SettingsError(
            f"args.azure.ca_file: cannot read PEM certificates from {path}: {error}"
        ) from None


def check_nodes(settings: Settings, n_nodes: int) -> None:
    """Raise if data on one machine's disk would be used by several nodes.

    Raises
    ------
    SettingsError
        If other nodes could not read the execution store or the results.
    """
    if n_nodes <= 1 or settings.shared_filesystem:
        return
    local = []
    if settings.resolved_store_url.startswith("sqlite"):
        local.append("args.store_url: SQLite is a file on one machine; use postgresql+psycopg://…")
    if settings.results_container is None:
        local.append(
            "args.results_url: file:// is the disk of one machine; use az://ACCOUNT/CONTAINER"
        )
    if not local:
        return
    raise SettingsError(
        "\n".join(
            f"{problem}; this cluster has {n_nodes} nodes: set args.shared_filesystem to true "
            "if the folder is the same on all of them"
            for problem in local
        )
    )

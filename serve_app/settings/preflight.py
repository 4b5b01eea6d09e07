"""What a machine and a cluster must have for settings that are right by themselves."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from importlib.util import find_spec

from serve_app.settings.settings import Settings, SettingsError

FOR_AZURE = ("azure.identity", "azure.storage.blob", "aiohttp", "httpx", "obstore")
"""What the extra ``azure`` installs."""


def is_installed(name: str) -> bool:
    """Say whether a module can be imported, without importing it."""
    parent = name.rpartition(".")[0]
    return (not parent or is_installed(parent)) and find_spec(name) is not None


def check_installed(settings: Settings, is_installed: Callable[[str], bool] = is_installed) -> None:
    """Refuse what needs Azure's libraries where they are not installed.

    Raises
    ------
    SettingsError
        Naming the packages, and how to install them.
    """
    azure = settings.azure
    needed = azure.blob.allowed_containers or azure.geocatalog.allowed or settings.results_container
    lacking = [name for name in FOR_AZURE if needed and not is_installed(name)]
    if lacking:
        raise SettingsError(
            f"args.azure: {', '.join(lacking)} cannot be imported here; install earth2serve "
            "with what Azure needs: pip install -c constraints.txt -e '.[azure]'"
        )


def check_certificates(settings: Settings) -> None:
    """Refuse a file of certificates that cannot be used.

    Raises
    ------
    SettingsError
        Naming the file, and what is wrong with it.
    """
    path = settings.azure.ca_file
    if path is None:
        return
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # of ssl as well
        raise SettingsError(
            f"args.azure.ca_file: {path} holds no certificates in PEM that can be read: {error}"
        ) from None


def check_nodes(settings: Settings, n_nodes: int) -> None:
    """Refuse what one machine's disk holds on a cluster of several.

    Raises
    ------
    SettingsError
        If other nodes could not see the execution store or the results.
    """
    if n_nodes <= 1 or settings.shared_filesystem:
        return
    local = []
    if settings.resolved_store_url.startswith("sqlite"):
        local.append("args.store_url: SQLite is a file; give postgresql+psycopg://…")
    if settings.results_container is None:
        local.append(
            "args.results_url: file:// is the disk of one machine; give az://ACCOUNT/CONTAINER"
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

"""How to reach Azure: the credential, trusted certificates, and one container."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.import_path import import_from
from deployments.runtime.option_types import FilePath, ImportPath
from workflows.delivery import Container
from workflows.execution import Stage

# Azure's libraries are imported only in the replicas that use them.
if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential


class CredentialOptions(BaseModel):
    """Identity of this server in Azure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: ImportPath = Field(
        default="azure.identity.aio:DefaultAzureCredential",
        description='"module:callable" that returns an asynchronous token credential. The default '
        "finds workload identity, managed identity and the login of the Azure CLI.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Keyword arguments of the credential, such as managed_identity_client_id. No "
        "secrets: Ray shows the configuration on its dashboard.",
    )


class AzureOptions(BaseModel):
    """Options of access to Azure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    credential: CredentialOptions = CredentialOptions()
    ca_file: FilePath | None = Field(
        default=None,
        description="PEM file of certificate authorities to trust instead of the system's: for "
        "emulators, and for networks that inspect TLS.",
    )

    def open_credential(self) -> AsyncTokenCredential:
        """Return a new credential, which caches tokens and renews them before they expire."""
        create = import_from(self.credential.loader)
        return cast("AsyncTokenCredential", create(**self.credential.options))

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context of connections to Azure."""
        return ssl.create_default_context(cafile=self.ca_file and str(self.ca_file))


class ContainerOptions(BaseModel):
    """One container, or a folder in one, and the limits of requests to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    container: Container
    azure: AzureOptions = AzureOptions()
    stage: Stage = Stage.PACKAGE
    """Stage that failures are attributed to."""
    retry_limit_s: float = 60.0
    """How long a call is retried; 0 for one attempt. Recorded steps are retried as well, so an
    execution survives an outage of some minutes."""
    request_timeout_s: float = 120.0
    """Limit of one request. The chunk of a field at 0.25 degrees has 4 MiB."""

    def name_of(self, key: str) -> str:
        """Return the name in the container of the blob with a key."""
        return "/".join(filter(None, (self.container.prefix, key)))

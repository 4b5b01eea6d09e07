"""Who this server is to Azure: the credential and the authorities that it trusts.

Only the deployments that talk to Azure make one; nothing of Azure is imported before.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.import_path import import_from

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

DEFAULT_CREDENTIAL = "azure.identity.aio:DefaultAzureCredential"


class AzureOptions(BaseModel):
    """How to reach Azure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    credential: str = DEFAULT_CREDENTIAL
    """Import path of what gives an asynchronous token credential."""
    credential_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keyword arguments for it."""
    ca_file: Path | None = None
    """Certificates of authorities to trust instead of the system's, PEM."""

    def open_credential(self) -> AsyncTokenCredential:
        """Make the credential; it caches tokens and renews them before they expire."""
        make = import_from(self.credential)
        return cast("AsyncTokenCredential", make(**self.credential_options))

    def tls(self) -> ssl.SSLContext:
        """Give what verifies the servers that are called."""
        return ssl.create_default_context(cafile=self.ca_file and str(self.ca_file))

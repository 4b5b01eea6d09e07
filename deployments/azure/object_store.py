"""Open a container with obstore."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from deployments.azure.options import ContainerOptions
from deployments.azure.token import TokenBridge
from deployments.runtime.retries import RetryPolicy

if TYPE_CHECKING:
    from obstore.store import AzureStore

BLOB_CALL = RetryPolicy(initial_delay_s=0.1, max_delay_s=5.0, jitter=0.5)
MAX_RETRIES = 1000
"""Only the time limit ends retries: refused connections would use up ten within seconds."""


def open_store(options: ContainerOptions, token: TokenBridge) -> AzureStore:
    """Return the store of a container, with retries as its options say."""
    from obstore.store import AzureStore

    container, ca_file = options.container, options.azure.ca_file
    return AzureStore(
        container.name,
        prefix=container.prefix or None,
        account_name=container.account,
        endpoint=container.account_url,
        credential_provider=token,
        # By default these come from the environment.
        use_emulator=False,
        use_fabric_endpoint=False,
        skip_signature=False,
        client_options={
            "timeout": timedelta(seconds=options.request_timeout_s),
            **({"root_certificate": ca_file.read_bytes()} if ca_file else {}),
        },
        retry_config={
            "max_retries": MAX_RETRIES if options.retry_limit_s else 0,
            "retry_timeout": timedelta(seconds=options.retry_limit_s),
            "backoff": {
                "init_backoff": timedelta(seconds=BLOB_CALL.initial_delay_s),
                "max_backoff": timedelta(seconds=BLOB_CALL.max_delay_s),
                "base": BLOB_CALL.factor,
            },
        },
    )

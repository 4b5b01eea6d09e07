"""Sections about requests and the replicas that serve them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from deployments.models.options import WindowConfig
from deployments.runtime.option_types import Count, PositiveFloat
from serve_app.settings.section import Section


class QueueSettings(Section):
    """How many executions may wait and run."""

    max_size: Count = Field(
        default=20,
        description="Executions that may wait. Further requests are refused with status 429.",
    )
    max_running: Count | None = Field(
        default=None,
        description="Executions of one workflow that run at once. Null is the replicas of its "
        "model plus 3, and the replicas of a workflow of your own.",
    )


class LimitSettings(Section):
    """Limits of one request."""

    max_output_gb: PositiveFloat = Field(
        default=100.0, description="Maximum size of one result, uncompressed, in 10^9 bytes."
    )
    max_body_mb: Annotated[PositiveFloat, Field(ge=0.01)] = Field(
        default=1.0, description="Maximum size of a request body, in 10^6 bytes."
    )

    @property
    def max_output_bytes(self) -> int:
        """Maximum size of one result, uncompressed, bytes."""
        return int(self.max_output_gb * 10**9)

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body, bytes."""
        return int(self.max_body_mb * 10**6)


class AuthSettings(Section):
    """Authentication."""

    tokens_file: Path | None = Field(
        default=None,
        description="File of bearer tokens, with one line name:sha256 per caller, as printed by "
        "`python -m serve_app.auth NAME`. Null requires none.",
    )


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", value):
        raise ValueError('must be an origin such as "https://example.org", or "*"')
    return value


class CorsSettings(Section):
    """Web pages that may call the server from a browser."""

    allow_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(),
        description='Origins of web pages that may call, such as "https://example.org", or "*". '
        "Empty allows none.",
    )


class IngressSettings(Section):
    """The HTTP API."""

    replicas: Count = Field(default=1, description="Replicas that answer HTTP requests.")


class PackagerSettings(WindowConfig, Section):
    """Writing of results."""

    replicas: Count = Field(default=2, description="Replicas that write results.")

"""The section ``data_sources``: where initial conditions come from."""

from __future__ import annotations

from pydantic import Field

from deployments.initial_conditions.options import SourceConfig
from serve_app.settings.section import LoaderSection, Section


class DataSourceSettings(SourceConfig, LoaderSection):
    """A data source."""


class DataSourcesSettings(Section):
    """The data sources, by name."""

    ifs: DataSourceSettings = Field(default=DataSourceSettings(), description="ECMWF IFS analyses.")
    goes: DataSourceSettings = Field(
        default=DataSourceSettings(), description="Images of GOES-East."
    )

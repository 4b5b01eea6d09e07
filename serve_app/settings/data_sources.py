"""The section ``data_sources``: where initial conditions come from."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from deployments.initial_conditions.options import SourceConfig
from serve_app.settings.section import (
    OWN_LOADER,
    ComponentName,
    LoaderSection,
    OwnLoader,
    Section,
)


class DataSourceSettings(SourceConfig, LoaderSection):
    """A data source."""


class OwnSourceSettings(DataSourceSettings):
    """Any other data source."""

    loader: OwnLoader = Field(description=OWN_LOADER)


class DataSourcesSettings(Section):
    """The data sources, by name. Other names than these are data sources of your own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[ComponentName, OwnSourceSettings] = Field(init=False)

    ifs: DataSourceSettings = Field(default=DataSourceSettings(), description="ECMWF IFS analyses.")
    goes: DataSourceSettings = Field(
        default=DataSourceSettings(), description="Images of GOES-East."
    )

    @property
    def own(self) -> dict[str, OwnSourceSettings]:
        """Data sources of the operator, by name."""
        return self.__pydantic_extra__

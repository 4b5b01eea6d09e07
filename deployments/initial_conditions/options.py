"""Options of the InitialConditions deployment."""

from __future__ import annotations

from deployments.runtime.import_path import LoaderOptions


class SourceOptions(LoaderOptions):
    """A data source."""

    timeout_s: float
    """Seconds that one fetch may take."""

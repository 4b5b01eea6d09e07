"""Options of the InitialConditions deployment."""

from __future__ import annotations

from deployments.runtime.import_path import LoaderOptions


class SourceOptions(LoaderOptions):
    """A data source, and how long one fetch may take."""

    timeout_s: float

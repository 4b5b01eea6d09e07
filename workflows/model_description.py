"""What a model says of itself, from which parameters, plans and datasets follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workflows.grids import AnyGrid


class ModelDescription(BaseModel):
    """Description of a prognostic model, reported by a replica that has loaded it."""

    # Another version of this server may have stored further fields.
    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["model"] = "model"
    input_variables: tuple[str, ...] = Field(min_length=1)
    """Variables of the initial conditions, in the order of the model."""
    output_variables: tuple[str, ...] = Field(min_length=1)
    history_hours: tuple[int, ...] = (0,)
    """Times of the initial conditions relative to the start, ascending; the last is 0."""
    step_hours: int = Field(ge=1)
    input_grid: AnyGrid
    grid: AnyGrid
    """Grid of the output."""
    is_stochastic: bool
    """Whether it draws random numbers of its own."""
    diagnostics: Mapping[str, tuple[str, ...]] = {}
    """Variables that the diagnostics of each workflow add."""

    def variables(self, workflow: str) -> tuple[str, ...]:
        """Return all variables that a workflow can deliver: the model's, then its diagnostics'."""
        return (*self.output_variables, *self.diagnostics.get(workflow, ()))

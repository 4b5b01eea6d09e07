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
    steps_per_call: int = Field(default=1, ge=1)
    input_grid: AnyGrid
    grid: AnyGrid
    """Grid of the output."""
    is_stochastic: bool
    """Whether it draws random numbers of its own."""
    diagnostics: Mapping[str, tuple[str, ...]] = {}
    """Variables that the diagnostics of each workflow add."""

    @property
    def output_is_input(self) -> bool:
        """Whether the model can start from its own output."""
        same_variables = self.input_variables == self.output_variables
        return same_variables and self.input_grid == self.grid and self.steps_per_call == 1

    def variables(self, workflow: str) -> tuple[str, ...]:
        """Return all variables that a workflow can deliver: the model's, then its diagnostics'."""
        return (*self.output_variables, *self.diagnostics.get(workflow, ()))

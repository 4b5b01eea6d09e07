"""Workflows: parameters, validation, plan and dataset, without Ray, HTTP or torch."""

from workflows.base import Parameters, Plan, Workflow
from workflows.execution import Execution, Progress, Stage, Status
from workflows.fcn3 import FCN3Workflow
from workflows.grids import Grid
from workflows.stormscope import StormScopeWorkflow

WORKFLOWS: dict[str, type[Workflow]] = {
    FCN3Workflow.name: FCN3Workflow,
    StormScopeWorkflow.name: StormScopeWorkflow,
}

__all__ = [
    "WORKFLOWS",
    "Execution",
    "FCN3Workflow",
    "Grid",
    "Parameters",
    "Plan",
    "Progress",
    "Stage",
    "Status",
    "StormScopeWorkflow",
    "Workflow",
]

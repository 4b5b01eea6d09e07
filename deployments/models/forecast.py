"""The time steps of one member by any model with Earth2Studio's interface."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.description import spatial_coordinates
from deployments.models.known_models import STOCHASTIC, path_of
from deployments.models.messages import MemberJob
from deployments.models.random_numbers import RandomNumbers, seed_own_generators
from deployments.models.state import UnusableCheckpoint, set_internal_state
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import describe_error
from workflows.base import Plan
from workflows.errors import StageFailed
from workflows.execution import Stage

Fields = tuple[Any, Mapping[str, Any]]
"""An array or tensor, dims (time, lead_time, variable, *space), with its coordinates."""
Save = Callable[[int, Any, RandomNumbers], None]


@dataclass(frozen=True)
class Forecaster:
    """A model with what is applied to its input and output.

    Parameters
    ----------
    model : PrognosticModel
    perturbation : callable, optional
        Returns a new ``Perturbation`` of Earth2Studio, for the initial conditions of one member:
        some have generators of their own.
    diagnostics : sequence of DiagnosticModel, optional
        Applied to every step.
    """

    model: Any
    perturbation: Callable[[], Any] | None = None
    diagnostics: Sequence[Any] = ()

    def steps(
        self, job: MemberJob, start: Floats | Checkpoint, buffers: BufferPool, save: Save
    ) -> Generator[Floats]:
        """Roll out one member.

        Parameters
        ----------
        start : ndarray, shape (history, variable, *space), or Checkpoint
            Initial conditions, or where to resume. The dimension of a single time may be missing.
        buffers : BufferPool
            Memory for the fields that are yielded.
        save : callable
            Called after each step but the last, before the model continues, with its time index,
            all fields of the model, shape (variable, *space), and the member's random numbers.

        Yields
        ------
        ndarray, shape (variable, *space)
            The plan's variables at each time, from the initial conditions, or from the first step
            after the checkpoint. A copy: models overwrite their output. A variable that is not
            part of the initial conditions is NaN there.

        Raises
        ------
        UnusableCheckpoint
            Before the first step, if the model cannot resume from the checkpoint.
        StageFailed
            If the model computes another time than the plan's, or lacks a variable.
        """
        plan, seed = job.plan, job.plan.seeds[job.member]
        numbers = _random_numbers(self.model, seed)
        if isinstance(start, Checkpoint):
            steps, index = self._resumed(plan, start, seed, numbers), start.step + 1
        else:
            with numbers.own():
                x, coords = _model_input(self.model, plan, start)
                if self.perturbation is not None:
                    # Bred vectors let the model compute.
                    _seed(self.model, seed)
                    perturbation = self.perturbation()
                    seed_own_generators(perturbation, seed)
                    x, coords = perturbation(x, coords)
                steps = _iterator(self.model, x, coords, seed)
            index = 0
        with closing(steps):
            while index <= plan.n_steps:
                with numbers.own():
                    fields, coords = next(steps)
                    # Initial conditions may lack what a diagnostic needs.
                    possible = [d for d in self.diagnostics if index or _has_inputs(d, coords)]
                    found = [(fields, coords), *(_diagnose(d, fields, coords) for d in possible)]
                for lead, hours in enumerate(_lead_hours(coords)):
                    # Some models yield their history first.
                    if index == 0 and hours < 0:
                        continue
                    _check_lead(hours, index * plan.step_hours)
                    yield _selected(found, lead, plan.variables, buffers, is_initial=index == 0)
                    if index < plan.n_steps:
                        save(index, fields[0, lead], numbers)
                    index += 1
                    if index > plan.n_steps:
                        break

    def _resumed(
        self, plan: Plan, start: Checkpoint, seed: int, numbers: RandomNumbers
    ) -> Generator[Fields]:
        try:
            with numbers.own():
                lead_hours = start.step * plan.step_hours
                x, coords = _model_input(self.model, plan, start.state, lead_hours)
                steps = _iterator(self.model, x, coords, seed)
                # The first fields are those of the checkpoint. Yielding them initializes the
                # model's internal state, so it is restored only afterwards.
                next(steps)
            set_internal_state(self.model, start.internal, numbers)
        except Exception as error:
            raise UnusableCheckpoint(describe_error(error)) from error
        return steps


def _random_numbers(model: Any, seed: int) -> RandomNumbers:
    if getattr(model, "numpy_native", False):
        return RandomNumbers(seed, uses_torch=False)
    device = _device(model)
    return RandomNumbers(seed, devices=[device] if str(device).startswith("cuda") else [])


def _iterator(model: Any, x: Any, coords: Mapping[str, Any], seed: int) -> Generator[Fields]:
    # The iterator reads the seed at its first step: create no other one until then.
    _seed(model, seed)
    steps: Iterator[Fields] = model.create_iterator(x, coords)
    return (each for each in steps)


def _seed(model: Any, seed: int) -> None:
    """Seed the generators that a model keeps for itself."""
    if hasattr(model, "set_rng"):
        has_reset = "reset" in inspect.signature(model.set_rng).parameters
        model.set_rng(seed=seed, **({"reset": True} if has_reset else {}))
    elif path_of(model) in STOCHASTIC and hasattr(model, "seed"):
        model.seed = seed


def _lead_hours(coords: Mapping[str, Any]) -> list[float]:
    leads = np.atleast_1d(coords["lead_time"]) / np.timedelta64(1, "h")
    return [float(hours) for hours in leads]


def _check_lead(hours: float, expected: float) -> None:
    if hours != expected:
        raise StageFailed(
            Stage.INFERENCE, f"the model computed {hours:g} h after the start, not {expected:g} h"
        )


def _model_input(model: Any, plan: Plan, state: Floats, lead_hours: int = 0) -> Fields:
    """Return a copy of a state on the model's device; models overwrite their input."""
    space = spatial_coordinates(model.input_coords())
    shape = (1, len(plan.history_hours), len(plan.input_variables), *map(len, space.values()))
    coords = OrderedDict(
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.array(
            [np.timedelta64(hours + lead_hours, "h") for hours in plan.history_hours]
        ),
        variable=np.array(plan.input_variables),
        **space,
    )
    x = np.array(state).reshape(shape)
    if getattr(model, "numpy_native", False):
        return x, coords
    import torch

    return torch.from_numpy(x).to(_device(model)), coords


def _device(model: Any) -> Any:
    for kind in ("parameters", "buffers"):
        if (
            hasattr(model, kind)
            and (tensor := next(iter(getattr(model, kind)()), None)) is not None
        ):
            return tensor.device
    return getattr(model, "device", "cpu")


def _has_inputs(diagnostic: Any, coords: Mapping[str, Any]) -> bool:
    names = {str(name) for name in coords["variable"]}
    return all(str(name) in names for name in diagnostic.input_coords()["variable"])


def _diagnose(diagnostic: Any, x: Any, coords: Mapping[str, Any]) -> Fields:
    from earth2studio.utils.coords import map_coords

    found: Fields = diagnostic(*map_coords(x, coords, diagnostic.input_coords()))
    return found


def _selected(
    found: Sequence[Fields],
    lead: int,
    variables: Sequence[str],
    buffers: BufferPool,
    *,
    is_initial: bool,
) -> Floats:
    """Return copies of variables at one lead time of what a model and its diagnostics yielded."""
    by_name = {
        str(name): fields[0, lead, number]
        for fields, coords in found
        for number, name in enumerate(coords["variable"])
    }
    missing = [name for name in variables if name not in by_name]
    if missing and not is_initial:
        raise StageFailed(Stage.INFERENCE, f"the model computed no {', '.join(missing)}")
    return buffers.gather([by_name.get(name) for name in variables], found[0][0].shape[3:])

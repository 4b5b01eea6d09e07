"""A user's workflow class: imported, described, made and called, in the replica that runs it.

The interface is that of ``earth2studio.serve.server.Earth2Workflow``; a class need not derive from
it. One that does is given everything that Earth2Studio's own server gives it, without Redis.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from deployments.custom_workflow.earth2studio_shim import isolate_import
from deployments.runtime.failures import sanitize
from workflows.base import problems_of
from workflows.custom import WorkflowDescription
from workflows.errors import Problem
from workflows.execution import Progress

logger = logging.getLogger("ray.serve")

THEIRS = "earth2studio.serve."
"""What is defined below is Earth2Studio's server, not the user's."""
STEPS = {"num_steps": (1, 1000), "nsteps": (1, 1000)}
"""Bounds that Earth2Studio's server puts on parameters of these names."""
R = TypeVar("R")

LONGEST_MESSAGE = 500
MOST_STEPS = 2**53
"""What every client's JSON reads exactly."""


def _words(value: Any) -> str:
    """Bound a text that every status answer will carry; what UTF-8 cannot hold is replaced."""
    return sanitize(str(value)[:LONGEST_MESSAGE])


def _step(value: Any) -> int:
    return min(max(int(value), 0), MOST_STEPS)


TOLD: Mapping[str, Callable[[Any], Any]] = {
    "progress": _words,
    "current_step": _step,
    "total_steps": _step,
    "error_message": _words,
}
"""What a class may tell of its progress, the fields of Earth2Studio's ``WorkflowProgress``."""


class InvalidConfig(ValueError):
    """A ``config`` that the class's constructor does not take."""


class UserClass:
    """A class, by its import path.

    Parameters
    ----------
    path : str
        ``module:Class``.
    scratch : Path
        Folder for what Earth2Studio's server makes when it is imported.
    """

    def __init__(self, path: str, scratch: Path) -> None:
        module, _, attribute = path.partition(":")
        self.path = path
        with isolate_import(scratch):
            # A file that was added since the last try would not be seen.
            importlib.invalidate_caches()
            found: Any = guard_user_code(partial(importlib.import_module, module))
            for part in attribute.split("."):
                found = getattr(found, part)
        if not inspect.isclass(found) or not any("__call__" in vars(b) for b in found.__mro__):
            raise TypeError(f"{path} is no class with a __call__ method")
        self.type = found
        self._parameters = _model_of(found, "Parameters", "__call__", skip={"io"})
        self._config = _model_of(found, "Config", "__init__")

    @property
    def name(self) -> str:
        """Give the name that the class gives itself."""
        return str(getattr(self.type, "name", None) or self.type.__name__)

    def describe(self) -> WorkflowDescription:
        """Say what a client needs to know."""
        # Not `inspect.getdoc`, which takes what the base class says of itself.
        text = getattr(self.type, "description", "") or inspect.cleandoc(self.type.__doc__ or "")
        # A default may be NaN, which is no JSON.
        schema = json.dumps(self._parameters.model_json_schema())
        return WorkflowDescription(
            description=str(text),
            parameters_schema=json.loads(schema, parse_constant=lambda _: None),
            own_validation=self._validates_itself(),
        )

    def make(self, config: Mapping[str, Any]) -> Any:
        """Check the config and make an instance.

        Raises
        ------
        InvalidConfig
            Naming what the constructor does not take.
        """
        try:
            checked = self._config.model_validate(dict(config))
        except ValidationError as error:
            problems = problems_of(error, "config", list(self._config.model_fields))
            raise InvalidConfig("; ".join(f"{p.field}: {p.message}" for p in problems)) from None
        return self.type(**{name: getattr(checked, name) for name in checked.model_fields_set})

    def problems_with(self, parameters: Mapping[str, Any]) -> list[Problem]:
        """Say what the class finds wrong with parameters."""
        try:
            self.validated(parameters)
        except ValidationError as error:
            return problems_of(error, "parameters", list(self._parameters.model_fields))
        except Exception as error:
            # Earth2Studio's base class says in words what pydantic found.
            if isinstance(error.__cause__, ValidationError):
                return problems_of(
                    error.__cause__, "parameters", list(self._parameters.model_fields)
                )
            return [Problem("parameters", _words(error) or type(error).__name__)]
        return []

    def validated(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters as the class does; gives the keyword arguments of a call.

        Raises
        ------
        Exception
            Whatever the class raises.
        """
        own = getattr(self.type, "validate_parameters", None)
        checked = guard_user_code(partial(own or self._parameters.model_validate, dict(parameters)))
        if checked is None:
            checked = self._parameters.model_validate(dict(parameters))
        return checked.model_dump() if isinstance(checked, BaseModel) else dict(checked)

    def _validates_itself(self) -> bool:
        own = getattr(self.type, "validate_parameters", None)
        if own is not None and not getattr(own, "__module__", "").startswith(THEIRS):
            return True
        return _calls_functions(self._parameters.__pydantic_core_schema__)


def guard_user_code(call: Callable[[], R]) -> R:
    """Call what a user wrote; what would end a process or an event loop becomes an error.

    Raises
    ------
    Exception
        What the call raises; `RuntimeError` instead of ``SystemExit`` and the like.
    """
    try:
        return call()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def prepare(
    instance: Any,
    execution_id: str,
    folder: Path,
    note: Callable[[Mapping[str, Any]], None],
) -> None:
    """Give an instance what a running class may use: its id, its folder, its progress.

    Set on the instance, where it goes before what the class inherits: Earth2Studio's own
    methods want a Redis.
    """

    def get_output_path(execution_id: str | None = None) -> Path:
        return folder

    def update_execution_data(execution_id: str, updates: Any) -> None:
        told = updates if isinstance(updates, Mapping) else {"progress": updates}
        progress = told.get("progress")
        if progress is not None:
            note(_told(progress))

    given: dict[str, Any] = {
        "execution_id": execution_id,
        "get_output_path": get_output_path,
        "update_execution_data": update_execution_data,
    }
    if not hasattr(type(instance), "update_progress"):
        given["update_progress"] = lambda progress: note(_told(progress))
    for name, value in given.items():
        with suppress(AttributeError):  # of slots, or a property of the class's own
            object.__setattr__(instance, name, value)


class Told:
    """The progress that a class tells, piece by piece: what is left out stands as it was."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def note(self, values: Mapping[str, Any]) -> None:
        """Add what was told."""
        self._values = {**self._values, **values}

    def progress(self, done: int, total: int) -> Progress:
        """Give the progress, from what passed through the output where the class is silent."""
        told = self._values
        current, all_steps = told.get("current_step", done), told.get("total_steps", total)
        message = told.get("progress") or (
            f"{current} of {all_steps} steps" if all_steps else "running"
        )
        return Progress(
            message=str(message),
            current_step=_step(current),
            total_steps=_step(all_steps),
            error_message=told.get("error_message"),
        )


def _told(progress: Any) -> dict[str, Any]:
    """Take a ``WorkflowProgress``, a mapping or object of the same fields, or words alone.

    Raises
    ------
    ValueError, TypeError
        If a step is no number: in the class's own thread, at the line that tells it.
    """
    if isinstance(progress, str):
        progress = {"progress": progress}
    elif not isinstance(progress, Mapping):
        progress = {name: getattr(progress, name, None) for name in TOLD}
    return {
        name: kind(progress[name]) for name, kind in TOLD.items() if progress.get(name) is not None
    }


def _calls_functions(schema: Any) -> bool:
    """Say whether a schema of pydantic's core calls validators of the user's, at any depth."""
    pending = [schema]
    while pending:
        match pending.pop():
            case {"type": str(kind), "function": {"function": function}} if kind.startswith(
                "function-"
            ) and not getattr(function, "__module__", "").startswith((THEIRS, "pydantic.")):
                return True
            case dict() as part:
                pending.extend(part.values())
            case list() | tuple() as parts:
                pending.extend(parts)
    return False


def _hints(function: Any, names: Collection[str]) -> dict[str, Any]:
    """Resolve the annotations of some parameters; others may name what is not imported here."""

    def chosen() -> None:
        pass

    annotations = getattr(function, "__annotations__", {})
    chosen.__annotations__ = {name: annotations[name] for name in names if name in annotations}
    known = getattr(inspect.unwrap(function), "__globals__", {})
    return get_type_hints(chosen, known, include_extras=True)


def _model_of(
    owner: type, attribute: str, method: str, skip: Collection[str] = ()
) -> type[BaseModel]:
    """Give the class's own model of a method's parameters, or one made from its signature."""
    own = getattr(owner, attribute, None)
    if inspect.isclass(own) and issubclass(own, BaseModel):
        return own
    function = getattr(owner, method)
    if function is object.__init__:
        return create_model(attribute, __config__=ConfigDict(extra="forbid"))
    parameters = {
        name: parameter
        for name, parameter in list(inspect.signature(function).parameters.items())[1:]
        if name not in skip
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    for name in parameters:
        if name.startswith("_") or (name.startswith("model_") and hasattr(BaseModel, name)):
            raise TypeError(f"{method} has a parameter {name!r}, which cannot be served: rename it")
    hints = _hints(function, parameters)
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        low, high = STEPS.get(name, (None, None)) if method == "__call__" else (None, None)
        fields[name] = (hints.get(name, Any), Field(default, ge=low, le=high))
    return create_model(
        f"{owner.__name__}{attribute}",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        **fields,
    )

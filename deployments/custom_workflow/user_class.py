"""A user's workflow class: imported, described, created and called in the replica that runs it.

The interface is that of ``earth2studio.serve.server.Earth2Workflow``; a class need not derive from
it.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from deployments.custom_workflow.calling import check_callable
from deployments.custom_workflow.earth2studio_shim import isolate_import
from deployments.custom_workflow.parameter_models import ParametersSchema, parameter_model
from deployments.custom_workflow.run_interface import bounded_text
from workflows.base import to_problems
from workflows.custom import WorkflowDescription
from workflows.errors import Problem

R = TypeVar("R")


class InvalidConfig(ValueError):
    """A ``config`` that the class's constructor does not accept."""


class UserClass:
    """A class, imported by its path.

    Parameters
    ----------
    path : str
        ``module:Class``.
    scratch : Path
        Folder for the files that Earth2Studio's server creates on import.

    Raises
    ------
    TypeError
        If the path does not name a class with a ``__call__`` method, or calling it cannot work.
    """

    def __init__(self, path: str, scratch: Path) -> None:
        module, _, attribute = path.partition(":")
        self.path = path
        with isolate_import(scratch):
            # Otherwise a file added since the last attempt would not be found.
            importlib.invalidate_caches()
            found: Any = guard_user_code(partial(importlib.import_module, module))
            for part in attribute.split("."):
                found = getattr(found, part)
        if not inspect.isclass(found) or not any("__call__" in vars(b) for b in found.__mro__):
            raise TypeError(f"{path} is not a class with a __call__ method")
        check_callable(found)
        self.type = found
        self._parameters = parameter_model(found, "Parameters", "__call__", skip={"io"})
        self._config = parameter_model(found, "Config", "__init__")

    @property
    def name(self) -> str:
        """The class's attribute ``name``, or else its own name."""
        return str(getattr(self.type, "name", None) or self.type.__name__)

    def describe(self) -> WorkflowDescription:
        """Return what clients need to know about the class."""
        # `inspect.getdoc` would return the docstring of the base class.
        text = getattr(self.type, "description", "") or inspect.cleandoc(self.type.__doc__ or "")
        # A default may be NaN, which JSON cannot hold.
        schema = json.dumps(self._parameters.model_json_schema(schema_generator=ParametersSchema))
        return WorkflowDescription(
            description=str(text),
            parameters_schema=json.loads(schema, parse_constant=lambda _: None),
        )

    def create(self, config: Mapping[str, Any]) -> Any:
        """Create an instance; raises `InvalidConfig` if the constructor refuses the config."""
        try:
            checked = self._config.model_validate(dict(config))
        except ValidationError as error:
            problems = to_problems(error, "config", list(self._config.model_fields))
            raise InvalidConfig("; ".join(f"{p.field}: {p.message}" for p in problems)) from None
        return self.type(**{name: getattr(checked, name) for name in checked.model_fields_set})

    def problems_with(self, parameters: Mapping[str, Any]) -> list[Problem]:
        """Return what the class finds wrong with parameters."""
        try:
            self.validated(parameters)
        except Exception as error:
            # Earth2Studio's base class wraps pydantic's error in one of its own.
            invalid = error if isinstance(error, ValidationError) else error.__cause__
            if isinstance(invalid, ValidationError):
                return to_problems(invalid, "parameters", list(self._parameters.model_fields))
            return [Problem("parameters", bounded_text(error) or type(error).__name__)]
        return []

    def validated(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters as the class does, and return the keyword arguments of a call.

        Raises what the class raises.
        """
        own = getattr(self.type, "validate_parameters", None)
        checked = guard_user_code(partial(own or self._parameters.model_validate, dict(parameters)))
        if checked is None:
            checked = self._parameters.model_validate(dict(parameters))
        return checked.model_dump() if isinstance(checked, BaseModel) else dict(checked)


def guard_user_code(call: Callable[[], R]) -> R:
    """Call user code; ``SystemExit`` and other non-errors become `RuntimeError`."""
    try:
        return call()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error

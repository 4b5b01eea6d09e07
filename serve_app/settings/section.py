"""Base of all sections of the settings."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.runtime.import_path import LoaderOptions
from deployments.runtime.option_types import is_import_path

SYNTHETIC = "synthetic"

Options = TypeVar("Options", bound=BaseModel)


def _loader(value: str) -> str:
    if value != SYNTHETIC and not is_import_path(value):
        raise ValueError(
            f'must be "{SYNTHETIC}" or "module:callable", as in "my_package.models:load"'
        )
    return value


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and errors never quote a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def to_options(self, options: type[Options], /, **derived: Any) -> Options:
        """Return the options of a deployment.

        Parameters
        ----------
        options : type
            Its fields that this section has, too, are taken from here.
        **derived
            Its other fields.
        """
        shared = options.model_fields.keys() & type(self).model_fields.keys()
        return options(**{name: getattr(self, name) for name in shared - derived.keys()}, **derived)


class LoaderSection(Section):
    """What loads a model or a data source."""

    loader: Annotated[str, AfterValidator(_loader)] = Field(
        default=SYNTHETIC,
        description='"synthetic", which needs no weights and no network, or "module:callable", '
        "which is called with `options`. A model's loader also receives `device`, that of the "
        "interpolation FCN3 as `px_model`, that of GOES `satellite` (goes16 or goes19).",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the loader, such as package: /weights/fcn3.",
    )

    def loader_options(
        self, name: str, synthetic: str, synthetic_options: dict[str, Any]
    ) -> LoaderOptions:
        """Return how to load the model or data source `name`.

        Parameters
        ----------
        name : str
        synthetic : str
            Import path of the loader that "synthetic" stands for.
        synthetic_options : dict
            Its keyword arguments, unless the section overrides them.
        """
        if self.loader != SYNTHETIC:
            return LoaderOptions(name=name, loader=self.loader, options=self.options)
        options = {**synthetic_options, **self.options}
        return LoaderOptions(name=name, loader=synthetic, options=options)

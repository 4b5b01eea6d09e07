"""Base of all sections of the settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deployments.runtime.import_path import LoaderOptions
from deployments.runtime.option_types import is_import_path
from serve_app.settings.modules import check_own

SYNTHETIC = "synthetic"
SYNTHETIC_LOADERS = {
    "fcn3": "deployments.synthetic.fcn3:load_fcn3",
    "ifs": "deployments.synthetic.fcn3:load_ifs",
    "interpolation": "deployments.synthetic.stormscope:load_interpolation",
    "stormscope": "deployments.synthetic.stormscope:load_stormscope",
    "goes16": "deployments.synthetic.stormscope:load_goes",
    "goes19": "deployments.synthetic.stormscope:load_goes",
}
"""What "synthetic" stands for, by model or data source."""

PARTS_OF_THE_SERVER = {
    *("packager", "initial_conditions", "blob_uploader", "geocatalog", "results"),
    *SYNTHETIC_LOADERS,
}
"""Names by which the Conductor knows what is not of the operator's choice."""

Options = TypeVar("Options", bound=BaseModel)


def _loader(value: str) -> str:
    if value != SYNTHETIC and not is_import_path(value):
        raise ValueError(
            f'must be "{SYNTHETIC}" or "module:callable", as in "my_package.models:load"'
        )
    return check_own(value)


OWN_LOADER = (
    '"module:name" of a class of Earth2Studio, such as earth2studio.models.px:SFNO or '
    "earth2studio.data:GFS, or of a function; called with `options`. A class with weights is "
    "loaded from its default package, or from the folder or URL in the option `package`."
)


def _own_loader(value: str) -> str:
    if not is_import_path(value):
        raise ValueError(
            'must be "module:name", as in "earth2studio.models.px:SFNO" or "my_package.models:load"'
        )
    return check_own(value)


OwnLoader = Annotated[str, AfterValidator(_own_loader)]


def _component_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", value):
        raise ValueError(
            "a name has up to 50 lower-case letters, digits and underscores, and starts with a "
            "letter"
        )
    if value in PARTS_OF_THE_SERVER:
        raise ValueError(f"{value!r} is a part of the server; choose another name")
    return value


ComponentName = Annotated[str, AfterValidator(_component_name)]
"""Name of a model or data source of the operator."""


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
        self, name: str, grid: BaseModel | None = None, **arguments: Any
    ) -> LoaderOptions:
        """Return how to load a model or data source.

        Parameters
        ----------
        name : str
            Its name, a key of `SYNTHETIC_LOADERS`.
        grid : BaseModel, optional
            Grid of synthetic data, unless `options` has another one.
        **arguments
            Further keyword arguments of any loader.
        """
        loader, options = self.loader, self.options
        if loader == SYNTHETIC:
            loader = SYNTHETIC_LOADERS[name]
            options = (grid.model_dump() if grid is not None else {}) | options
        return LoaderOptions(name=name, loader=loader, options=options | arguments)

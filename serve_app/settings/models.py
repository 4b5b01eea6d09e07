"""The section ``models``: how models are loaded, and the replicas that run them."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from deployments.models.options import FCN3Config, ModelConfig, StormScopeConfig
from deployments.runtime.option_types import Flag, Gpus, Replicas, Seconds
from serve_app.settings.section import (
    OWN_LOADER,
    SYNTHETIC,
    ComponentName,
    LoaderSection,
    OwnLoader,
    Section,
)


class ModelSettings(LoaderSection):
    """A model and the replicas that run it."""

    replicas: Replicas = Field(
        default=1,
        description="Replicas; ensemble members are spread over them. With Serve's autoscaling, "
        "set it to max_replicas.",
    )
    num_gpus: Gpus | None = Field(
        default=None,
        description='GPUs per replica. Null is 0 for "synthetic" and 1 otherwise.',
    )

    @property
    def resolved_num_gpus(self) -> float:
        """GPUs per replica."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 0.0 if self.loader == SYNTHETIC else 1.0


class OwnModelSettings(ModelConfig, ModelSettings):
    """Any other model and the replicas that run it."""

    loader: OwnLoader = Field(description=OWN_LOADER)
    idle_unload_s: Seconds | None = Field(
        default=None,
        description="Seconds without work after which the model leaves the GPU for the host's "
        "memory; the next request brings it back. Null keeps it there.",
    )
    stochastic: Flag | None = Field(
        default=None,
        description="Whether the model draws random numbers of its own, so that its members differ "
        "without a perturbation. Null knows it of models with `set_rng` and of Earth2Studio's.",
    )


class FCN3Settings(FCN3Config, ModelSettings):
    """FCN3 and the replicas that run it."""


class StormScopeSettings(StormScopeConfig, ModelSettings):
    """StormScope and the replicas that run it."""


class ModelsSettings(Section):
    """The models, by name. Other names than these are models of your own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[ComponentName, OwnModelSettings] = Field(init=False)

    fcn3: FCN3Settings = Field(default=FCN3Settings(), description="FourCastNet 3.")
    interpolation: LoaderSection = Field(
        default=LoaderSection(),
        description="Interpolates FCN3 to hourly steps for StormScope, in the replicas of FCN3.",
    )
    stormscope: StormScopeSettings = Field(
        default=StormScopeSettings(), description="StormScope-GOES."
    )
    in_turn: Flag = Field(
        default=False,
        description="True lets FCN3 and StormScope share one GPU that cannot hold both: one "
        "computes while the other waits in host memory. Each then needs num_gpus: 0.5.",
    )

    @property
    def replicas(self) -> dict[str, int]:
        """Replicas of each model."""
        own = {name: model.replicas for name, model in self.own.items()}
        return {"fcn3": self.fcn3.replicas, "stormscope": self.stormscope.replicas} | own

    @property
    def own(self) -> dict[str, OwnModelSettings]:
        """Models of the operator, by name."""
        return self.__pydantic_extra__

    @model_validator(mode="after")
    def _fit_one_gpu(self) -> ModelsSettings:
        num_gpus = self.fcn3.resolved_num_gpus + self.stormscope.resolved_num_gpus
        if self.in_turn and num_gpus > 1:
            raise ValueError(
                "with in_turn, fcn3 and stormscope share one GPU, but their num_gpus add up to "
                f"{num_gpus:g}; set num_gpus: 0.5 for each"
            )
        return self

"""The section ``models``: how models are loaded, and the replicas that run them."""

from __future__ import annotations

from pydantic import Field, model_validator

from deployments.models.options import FCN3Config, StormScopeConfig
from deployments.runtime.option_types import Flag, Gpus, Replicas
from serve_app.settings.section import SYNTHETIC, LoaderSection, Section


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


class FCN3Settings(FCN3Config, ModelSettings):
    """FCN3 and the replicas that run it."""


class StormScopeSettings(StormScopeConfig, ModelSettings):
    """StormScope and the replicas that run it."""


class ModelsSettings(Section):
    """The models, by name."""

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
        return {"fcn3": self.fcn3.replicas, "stormscope": self.stormscope.replicas}

    @model_validator(mode="after")
    def _fit_one_gpu(self) -> ModelsSettings:
        num_gpus = self.fcn3.resolved_num_gpus + self.stormscope.resolved_num_gpus
        if self.in_turn and num_gpus > 1:
            raise ValueError(
                "with in_turn, fcn3 and stormscope share one GPU, but their num_gpus add up to "
                f"{num_gpus:g}; set num_gpus: 0.5 for each"
            )
        return self

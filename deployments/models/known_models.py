"""What the source of Earth2Studio 0.19 says of its models, and their interface does not."""

from __future__ import annotations

from typing import Any

RESUMES_FROM_OUTPUT = frozenset(
    {
        "earth2studio.models.px.fcn:FCN",
        "earth2studio.models.px.fengwu:FengWu",
        "earth2studio.models.px.pangu:Pangu24",
        "earth2studio.models.px.persistence:Persistence",
        "earth2studio.models.px.sfno:SFNO",
    }
)
"""Models of Earth2Studio 0.19 whose next step depends on their latest output (and history) alone,
by their source. Others keep more: Pangu6 and FuXi count steps, Aurora and AIFS as well, DLWP has
its state on another grid, GraphCast in iterators of its own."""

STOCHASTIC = frozenset(
    {
        "earth2studio.models.px.aifs2ens:AIFS2ENS",
        "earth2studio.models.px.aifsens:AIFSENS",
        "earth2studio.models.px.atlas:Atlas",
        "earth2studio.models.px.atlas_crps:AtlasCRPS",
        "earth2studio.models.px.cbottle_video:CBottleVideo",
        "earth2studio.models.px.gencast_mini:GenCastMini",
        "earth2studio.models.px.stormcast:StormCast",
        "earth2studio.models.px.stormcastconus:StormCastCONUS",
    }
)
"""Models that draw from the global generators of torch or NumPy; ``set_rng`` tells it of others."""


def path_of(model: Any) -> str:
    """Return the import path of a model's class."""
    return f"{type(model).__module__}:{type(model).__qualname__}"


def is_stochastic(model: Any) -> bool:
    """Return whether a model draws random numbers of its own, as far as is known."""
    # DLESyM draws only with its conditional layer normalization.
    if not getattr(model, "use_cln", True):
        return False
    return hasattr(model, "set_rng") or path_of(model) in STOCHASTIC

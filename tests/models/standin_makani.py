"""Modules in the place of makani and torch-harmonics, which are not on PyPI in a usable form.

Earth2Studio's FCN3 looks for both once, when `earth2studio.models.px` is first imported.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register() -> None:
    """Make the stand-ins importable, unless the real ones are."""
    if importlib.util.find_spec("makani") is not None:
        return
    _add("torch_harmonics", __version__="0.8.1")
    _add("torch_harmonics.disco", cuda_kernels_is_available=lambda: False)
    _add("makani")
    _add("makani.models")
    _add("makani.models.model_package", load_model_package=_load_model_package)


def _add(name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(attributes)
    sys.modules[name] = module


def _load_model_package(package: Any) -> Any:
    """Load a package, as makani does: from its configuration, with random weights here."""
    package.get("config.json")
    from tests.models.standin_core import Core

    return Core()

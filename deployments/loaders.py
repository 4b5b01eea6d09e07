"""Loaders of real models, for the settings' ``loader: "deployments.loaders:…"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fcn3(device: str, *, package: str | None = None) -> Any:
    """Load FCN3.

    Parameters
    ----------
    device : str
        ``cuda`` or ``cpu``.
    package : str, optional
        Folder with the weights, or a URL that Earth2Studio's `Package` takes (``hf://``,
        ``ngc://``, ``s3://``); NVIDIA's weights on Hugging Face by default, pinned to the
        revision that Earth2Studio names.

    Raises
    ------
    FileNotFoundError
        If `package` is a local folder that does not exist.
    """
    if package is not None and "://" not in package and not Path(package).is_dir():
        raise FileNotFoundError(f"there is no folder {package} with FCN3's weights")
    from earth2studio.models.auto import Package
    from earth2studio.models.px import FCN3

    source = FCN3.load_default_package() if package is None else Package(package)
    model = FCN3.load_model(source)
    model.to(device)
    model.eval()
    model.weights = str(source.root)
    return model

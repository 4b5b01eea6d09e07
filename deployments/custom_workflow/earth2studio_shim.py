"""Import Earth2Studio's server module without its side effects on the process.

The import creates an output folder (``/outputs`` unless an environment variable names another),
removes the handlers of the root logger and replaces loguru's. Users' classes import the module for
their base class.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deployments.runtime.quick_import import speed_up_earth2studio_import

FOLDERS = ("DEFAULT_OUTPUT_DIR", "RESULTS_ZIP_DIR")
"""Environment variables that name its folders."""
CONFIG_MODULE = "earth2studio.serve.server.config"
"""Its module that warns about a missing configuration folder, which is not needed here."""


@contextmanager
def isolate_import(scratch: Path) -> Iterator[None]:
    """Preserve logging and redirect folders during an import.

    Parameters
    ----------
    scratch : Path
        Writable folder that replaces its own, which only root may create.
    """
    speed_up_earth2studio_import()
    scratch.mkdir(parents=True, exist_ok=True)
    # Set permanently: they are read once, at an unknown time, and the folder is created repeatedly.
    os.environ.update(dict.fromkeys(FOLDERS, str(scratch)))
    # This variable activates its registry, which only its own server needs.
    os.environ.pop("EARTH2STUDIO_API_ACTIVE", None)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # Removed beforehand: the import would close them, and a closed file is not reopened.
    root.handlers[:] = []
    with suppress(ImportError):
        import loguru

        loguru.logger.disable(CONFIG_MODULE)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

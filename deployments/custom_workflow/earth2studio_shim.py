"""Earth2Studio's own server module, imported without what that does to a process.

Its import makes an output folder, ``/outputs`` unless the environment names another, takes the
handlers off the root logger and replaces loguru's. Classes import it for their base class; here
that may change nothing but their namespace.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("ray.serve")

FOLDERS = ("DEFAULT_OUTPUT_DIR", "RESULTS_ZIP_DIR")
"""Environment variables by which it takes its folders."""
TELLS_OF_SETTINGS = "earth2studio.serve.server.config"
"""Its module that warns of a configuration folder which nobody needs here."""


@contextmanager
def isolate_import(scratch: Path) -> Iterator[None]:
    """Keep logging and folders as they are while something is imported.

    Parameters
    ----------
    scratch : Path
        What its folders shall be; whoever may write there need not be root.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    # For good: it reads them once, whenever that may be, and makes the folder again and again.
    os.environ.update(dict.fromkeys(FOLDERS, str(scratch)))
    # Its registry is for its own server.
    os.environ.pop("EARTH2STUDIO_API_ACTIVE", None)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # Taken off before: otherwise they would be closed as well, and a file does not open again.
    root.handlers[:] = []
    _disable_loguru(TELLS_OF_SETTINGS)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _disable_loguru(module: str) -> None:
    try:
        from loguru import logger as loguru
    except ImportError:
        return
    loguru.disable(module)

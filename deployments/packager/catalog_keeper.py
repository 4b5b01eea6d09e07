"""Keeps the static catalogue up to date, in the background."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from deployments.packager.stac_catalog import StaticCatalog

logger = logging.getLogger("ray.serve")

PAUSE_S = 0.25
"""Between being told and looking: of executions that end together, one look finds all."""


class CatalogUpdater:
    """Updates a catalogue after it was told that something has changed.

    A catalogue is for people who look around: no execution waits for it, nor fails with it.

    Parameters
    ----------
    catalog : StaticCatalog
    pause_s : float
        Between being told and looking.
    """

    def __init__(self, catalog: StaticCatalog, pause_s: float = PAUSE_S) -> None:
        self._catalog = catalog
        self._pause_s = pause_s
        self._stale: set[str] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")

    def refresh(self, workflow: str) -> None:
        """See to it that the workflow's items are looked at from now on; returns at once."""
        with self._lock:
            if workflow in self._stale:
                return
            self._stale.add(workflow)
        self._thread.submit(self._update, workflow)

    def _update(self, workflow: str) -> None:
        time.sleep(self._pause_s)
        with self._lock:
            self._stale.discard(workflow)
        try:
            self._catalog.update(workflow)
        except Exception:
            logger.exception("the static catalogue of %s is not up to date", workflow)

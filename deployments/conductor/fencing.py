"""Ends this process in favour of the Conductor that succeeds it."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

logger = logging.getLogger("ray.serve")


def end_process(reason: str) -> NoReturn:
    """End this process at once; Serve starts a successor, which resumes what runs here.

    An exception would not work: DBOS would record it as the outcome of a step or workflow.
    """
    logger.critical("ending this process: %s", reason)
    os._exit(1)


def end_superseded_process(reason: str) -> NoReturn:
    """End this process because a Conductor with a newer fencing token has taken over."""
    end_process(f"superseded by another Conductor: {reason}")

"""Where models and data sources come from, according to their deployments' last answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from workflows.dataset import Origin
from workflows.readiness import ComponentStatus, Ready


class Origins:
    """Origins of models and data sources, for the provenance of results.

    What an earlier attempt has written is kept only if its origins are unchanged. So an execution
    that begins before a component has answered must wait: an unknown origin would differ, and
    completed members would be computed again.
    """

    def __init__(self, components: Iterable[str]) -> None:
        self._answered = {name: asyncio.Event() for name in components}
        self._known: dict[str, Origin] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def record(self, name: str, status: ComponentStatus) -> None:
        """Record the answer of a component."""
        if isinstance(status, Ready):
            self._known[name] = status.origin
        else:
            self._known.pop(name, None)
        self._answered[name].set()

    def forget(self, name: str) -> None:
        """Forget a component that does not answer: it may come back as another model."""
        self._known.pop(name, None)
        self._answered[name].clear()

    async def wait(self, name: str) -> Origin:
        """Return the origin of a component that has answered; one without details if not ready."""
        if name in self._answered:
            await self._answered[name].wait()
        return self._known.get(name) or Origin(name=name)

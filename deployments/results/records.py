"""The content of working records, the same in files and in blobs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from deployments.results.protocols import StoredObject
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.errors import StageFailed
from workflows.execution import Stage

PLAN = "plan.json"


def encode_plan(plan: Plan, provenance: Provenance) -> bytes:
    """Return the record of a plan."""
    record = {
        "plan": plan.model_dump(mode="json"),
        "provenance": provenance.model_dump(mode="json"),
    }
    return json.dumps(record).encode()


def decode_plan(content: bytes) -> tuple[Plan, Provenance]:
    """Return what `encode_plan` was given."""
    record = json.loads(content)
    return Plan.model_validate(record["plan"]), Provenance.model_validate(record["provenance"])


def check_same_plan(execution_id: str, recorded: Plan, plan: Plan) -> None:
    """Raise StageFailed if an execution was created with a different plan."""
    if recorded != plan:
        raise StageFailed(Stage.PACKAGE, f"{execution_id} was created with a different plan")


def encode_step(objects: Sequence[StoredObject]) -> bytes:
    """Return the record of a written time step."""
    return json.dumps([[stored.key, stored.size, stored.sha256] for stored in objects]).encode()


def decode_step(content: bytes) -> list[StoredObject]:
    """Return what `encode_step` was given."""
    return [StoredObject(*row) for row in json.loads(content)]


def parse_numbers(names: Iterable[str]) -> set[tuple[int, int]]:
    """Return the numbers in names ``{member}-{number}``, with any suffix."""
    pairs = (name.partition(".")[0].split("-") for name in names)
    return {(int(member), int(number)) for member, number in pairs}


def latest_first(numbers: set[tuple[int, int]], member: int) -> list[int]:
    """Return the numbers of one member, largest first."""
    return sorted((number for owner, number in numbers if owner == member), reverse=True)

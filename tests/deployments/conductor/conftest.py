import pytest

from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import submit


@pytest.fixture
def claimed(store: ConductorStore) -> tuple[str, int]:
    """A running execution, and the fencing token of its Conductor."""
    execution_id, fence = submit(store), store.issue_fence()
    store.claim_next(fence)
    return execution_id, fence

import logging

import pytest

from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.harness import submit


@pytest.fixture(autouse=True)
def _dbos_writes_to_this_tests_stderr() -> None:
    """DBOS's handler keeps the stderr of the test that launched it first, which may be closed."""
    logging.getLogger("dbos").handlers.clear()


@pytest.fixture
def claimed(store: ConductorStore) -> tuple[str, int]:
    """A running execution, and the fencing token of its Conductor."""
    execution_id, fence = submit(store), store.issue_fence()
    store.claim_next(fence)
    return execution_id, fence

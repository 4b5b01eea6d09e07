"""The conformance suite of intermediate data, on disk and on Blob Storage."""

import io

import numpy as np
import pytest

from deployments.results.checkpoint import Checkpoint
from deployments.results.intermediate import IntermediateStore
from deployments.results.store import ResultsStore
from tests.deployments.results.backends import Backend
from tests.deployments.results.samples import ID, PROVENANCE, fields, make_nowcast_plan, make_plan
from workflows.errors import StageFailed, StaleConductor

PLAN = make_plan(seeds=(1, 2), n_steps=5)


@pytest.fixture
def intermediate(backend: Backend) -> IntermediateStore:
    return backend.intermediate()


def checkpoint_at(step: int) -> Checkpoint:
    state = np.full((2, 3, 4), step, np.float32)
    return Checkpoint(step, "model", state, {"noise": np.arange(5, dtype=np.uint8)})


def test_conditioning_field_is_read_as_it_was_written(
    backend: Backend, store: ResultsStore, intermediate: IntermediateStore
) -> None:
    with pytest.raises(StageFailed, match="not being written"):
        intermediate.read_conditioning(ID, 0, 0)
    store.create(PLAN, ID, PROVENANCE, 1)
    assert intermediate.read_conditioning(ID, 0, 0) is None
    field = np.arange(12, dtype=np.float32).reshape(3, 4)
    intermediate.write_conditioning(ID, 1, 0, 0, field)
    found = backend.intermediate().read_conditioning(ID, 0, 0)
    assert found is not None
    np.testing.assert_array_equal(found, field)


@pytest.mark.parametrize("length", [0, 100, 140])
def test_damaged_conditioning_field_is_computed_again(
    backend: Backend, store: ResultsStore, intermediate: IntermediateStore, length: int
) -> None:
    plan = make_nowcast_plan(n_steps=1)
    store.create(plan, ID, PROVENANCE, 1)
    file = io.BytesIO()
    np.save(file, np.zeros((4, 8), np.float32))
    for member in (0, 1):
        intermediate.write_conditioning(ID, 1, member, 0, np.zeros((4, 8), np.float32))
    backend.write(f"work/{ID}/conditioning/0-0.npy", file.getvalue()[:length])
    with pytest.raises(StageFailed, match="field 0 of member 0 was damaged"):
        intermediate.read_conditioning(ID, 0, 0)
    assert backend.store().create(plan, ID, PROVENANCE, 1).conditioning == (1,)


def test_checkpoint_is_read_when_all_steps_up_to_it_are_written(
    backend: Backend, store: ResultsStore, intermediate: IntermediateStore
) -> None:
    store.create(PLAN, ID, PROVENANCE, 1)
    intermediate.write_checkpoint(ID, 1, 1, checkpoint_at(2))
    for time_index in (2, 0):
        store.write_step(ID, 1, 1, time_index, fields(PLAN, 1, time_index))
        assert intermediate.read_checkpoint(ID, 1) is None
    store.write_step(ID, 1, 1, 1, fields(PLAN, 1, 1))
    found = backend.intermediate().read_checkpoint(ID, 1)
    assert found is not None
    assert (found.step, found.origin) == (2, "model")
    np.testing.assert_array_equal(found.state, checkpoint_at(2).state)
    np.testing.assert_array_equal(found.internal["noise"], np.arange(5, dtype=np.uint8))
    assert intermediate.read_checkpoint(ID, 0) is None


def test_latest_checkpoint_of_a_member_is_kept(
    backend: Backend, store: ResultsStore, intermediate: IntermediateStore
) -> None:
    store.create(PLAN, ID, PROVENANCE, 1)
    for member, step in ((0, 1), (1, 1), (1, 3)):
        intermediate.write_checkpoint(ID, 1, member, checkpoint_at(step))
    # An earlier one that arrives late, from a process that died, is not used.
    intermediate.write_checkpoint(ID, 1, 1, checkpoint_at(2))
    for time_index in range(5):
        store.write_step(ID, 1, 1, time_index, fields(PLAN, 1, time_index))
    found = intermediate.read_checkpoint(ID, 1)
    assert found is not None and found.step == 3
    intermediate.remove_checkpoints(ID, 1, 1)
    assert [key for key in backend.keys(ID) if "checkpoints/" in key] == [
        f"work/{ID}/checkpoints/0-1.npz"
    ]
    store.write_step(ID, 2, 0, 0, fields(PLAN, 0, 0))
    with pytest.raises(StaleConductor):
        intermediate.write_checkpoint(ID, 1, 0, checkpoint_at(4))
    store.clean(ID)
    assert not [key for key in backend.keys(ID) if "checkpoints" in key]
    with pytest.raises(StageFailed, match="not being written"):
        intermediate.write_checkpoint(ID, 2, 0, checkpoint_at(4))


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied"])
def test_damaged_checkpoint_is_not_used(
    backend: Backend, store: ResultsStore, intermediate: IntermediateStore, damage: str
) -> None:
    store.create(PLAN, ID, PROVENANCE, 1)
    store.write_step(ID, 1, 0, 0, fields(PLAN, 0, 0))
    intermediate.write_checkpoint(ID, 1, 0, checkpoint_at(0))
    file = io.BytesIO()
    checkpoint_at(0).write(file)
    content = bytearray(file.getvalue())
    if damage == "changed":
        content[content.index(checkpoint_at(0).state.tobytes()) + 7] ^= 1
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content.clear()
    backend.write(f"work/{ID}/checkpoints/0-0.npz", bytes(content))
    assert intermediate.read_checkpoint(ID, 0) is None

"""Models that share one GPU; stand-ins record where they are moved."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.models.gpu_lock import GpuLock


class Model:
    """Stands in for a torch module."""

    def __init__(self, fails_on: str | None = None) -> None:
        self.moves: list[str] = []
        self._fails_on = fails_on

    def to(self, device: str) -> Model:
        self.moves.append(device)
        if device == self._fails_on:
            raise RuntimeError("out of memory")
        return self


def never_stop() -> None:
    """Let a wait continue."""


def gpu_lock(folder: Path | None) -> GpuLock:
    # A device of torch's that is no GPU, so that nothing is imported for it.
    return GpuLock(folder, "meta")


def test_without_a_folder_nothing_is_moved_or_locked() -> None:
    model = Model()
    with gpu_lock(None).computing(model, check=never_stop):
        with gpu_lock(None).computing(model, check=never_stop):
            pass
    assert model.moves == []


def test_models_are_on_the_gpu_while_the_lock_is_held(tmp_path: Path) -> None:
    models = Model(), Model()
    with gpu_lock(tmp_path).computing(*models, check=never_stop):
        assert [model.moves for model in models] == [["meta"], ["meta"]]
    assert [model.moves for model in models] == [["meta", "cpu"]] * 2


@pytest.mark.parametrize("fails_on", [None, "meta"], ids=["computing", "moving"])
def test_an_error_releases_the_gpu(tmp_path: Path, fails_on: str | None) -> None:
    model = Model(fails_on)
    with pytest.raises(RuntimeError), gpu_lock(tmp_path).computing(model, check=never_stop):
        raise RuntimeError
    assert model.moves == ["meta", "cpu"]
    with gpu_lock(tmp_path).computing(Model(), check=never_stop):
        pass


def test_loaded_models_are_offloaded(tmp_path: Path) -> None:
    model = Model()
    with gpu_lock(tmp_path).loading() as offload:
        offload(model)
    assert model.moves == ["cpu"]


class Stopped(Exception):
    """Raised to stop a wait."""


def test_a_wait_for_the_lock_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped

    model = Model()
    with gpu_lock(tmp_path).computing(Model(), check=never_stop):
        with pytest.raises(Stopped), gpu_lock(tmp_path).computing(model, check=stop):
            pass
    assert model.moves == []


def test_holders_alternate(tmp_path: Path) -> None:
    order: list[str] = []
    both = threading.Barrier(2)

    def compute(name: str, times: int) -> None:
        lock = gpu_lock(tmp_path)
        both.wait()
        for _ in range(times):
            with lock.computing(Model(), check=never_stop):
                order.append(name)
                time.sleep(0.1)

    threads = [threading.Thread(target=compute, args=(name, 5)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Neither holds the lock three times in a row while the other waits.
    assert not any(name * 3 in "".join(order[:9]) for name in "ab")


def hold(folder: Path, held: Any) -> None:
    with gpu_lock(folder).computing(Model(), check=never_stop):
        held.set()
        time.sleep(60)


def test_the_lock_of_a_killed_holder_is_released(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    polls = 0

    def check() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            holder.kill()

    with gpu_lock(tmp_path).computing(Model(), check=check):
        pass
    assert polls >= 3
    holder.join()


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_model_leaves_the_gpu_after_some_time_without_work() -> None:
    clock, model = Clock(), Model()
    lock = GpuLock(None, "meta", idle_unload_s=60.0, clock=clock)
    assert lock.load_device == "cpu"
    assert not lock.is_idle
    with lock.computing(model, check=never_stop):
        assert model.moves == ["meta"]
        clock.now += 500.0
    assert not lock.is_idle
    clock.now += 59.0
    lock.unload_idle(model)
    assert model.moves == ["meta"]
    clock.now += 1.0
    assert lock.is_idle
    lock.unload_idle(model)
    assert model.moves == ["meta", "cpu"]
    lock.unload_idle(model)
    assert model.moves == ["meta", "cpu"]
    with lock.computing(model, check=never_stop):
        assert model.moves == ["meta", "cpu", "meta"]


def test_a_model_that_stays_is_loaded_where_it_computes() -> None:
    lock = GpuLock(None, "meta")
    with lock.computing(Model(), check=never_stop):
        pass
    assert lock.load_device == "meta"
    assert not lock.is_idle

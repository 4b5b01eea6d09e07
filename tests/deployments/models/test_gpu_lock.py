"""Turns on one GPU, taken by models that note where they are moved."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
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


def go_on() -> None:
    """Do not stop."""


def turn(folder: Path | None) -> GpuLock:
    # A device of torch's that is no GPU: nothing is imported for it.
    return GpuLock(folder, "meta")


def test_without_turns_nothing_is_moved_and_nobody_waits() -> None:
    model = Model()
    with turn(None).computing(model, check=go_on), turn(None).computing(model, check=go_on):
        pass
    assert model.moves == []


def test_a_model_is_on_the_gpu_while_it_has_its_turn(tmp_path: Path) -> None:
    models = Model(), Model()
    with turn(tmp_path).computing(*models, check=go_on):
        assert [model.moves for model in models] == [["meta"], ["meta"]]
    assert [model.moves for model in models] == [["meta", "cpu"]] * 2


@pytest.mark.parametrize("fails_on", [None, "meta"], ids=["computing", "moving"])
def test_what_fails_leaves_the_gpu_to_others(tmp_path: Path, fails_on: str | None) -> None:
    model = Model(fails_on)
    with pytest.raises(RuntimeError), turn(tmp_path).computing(model, check=go_on):
        raise RuntimeError
    assert model.moves == ["meta", "cpu"]
    with turn(tmp_path).computing(Model(), check=go_on):
        pass


def test_what_is_loaded_is_put_aside(tmp_path: Path) -> None:
    model = Model()
    with turn(tmp_path).loading() as put_aside:
        put_aside(model)
    assert model.moves == ["cpu"]


class Stopped(Exception):
    """Raised in place of waiting on."""


def test_whoever_waits_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped

    model = Model()
    with turn(tmp_path).computing(Model(), check=go_on):
        with pytest.raises(Stopped), turn(tmp_path).computing(model, check=stop):
            pass
    assert model.moves == []


def test_turns_go_round(tmp_path: Path) -> None:
    order: list[str] = []
    both = threading.Barrier(2)

    def take(name: str, times: int) -> None:
        mine = turn(tmp_path)
        both.wait()
        for _ in range(times):
            with mine.computing(Model(), check=go_on):
                order.append(name)
                time.sleep(0.1)

    threads = [threading.Thread(target=take, args=(name, 5)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Nobody has it three times in a row while another waits.
    assert not any(name * 3 in "".join(order[:9]) for name in "ab")


def hold(folder: Path, held: Any) -> None:
    with turn(folder).computing(Model(), check=go_on):
        held.set()
        time.sleep(60)


def test_a_holder_that_is_killed_keeps_nobody(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held))
    holder.start()
    assert held.wait(60)
    waits: list[Callable[[], None]] = []

    def check() -> None:
        waits.append(go_on)
        if len(waits) == 3:
            holder.kill()

    with turn(tmp_path).computing(Model(), check=check):
        pass
    assert len(waits) >= 3
    holder.join()

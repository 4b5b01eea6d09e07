"""Writing behind a loop: bounded memory, order, failures and closing."""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.custom_workflow.write_behind import WriteBehind

Numbers = NDArray[np.int64]
Start = Callable[..., WriteBehind]
ITEM = 8
"""Bytes of one number."""
LONG_S = 60.0


class Disk:
    """Writes an array when a test lets it, and records what it wrote.

    Parameters
    ----------
    failures : dict of int to exception
        Errors of writing arrays that begin with these numbers.
    """

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        self._failures = failures or {}
        self._gate = threading.Semaphore(0)
        self._closed = True
        self._lock = threading.Lock()
        self.unwritten = 0
        """Numbers that are queued but not written."""
        self.most_unwritten = 0
        self.written: list[list[int]] = []
        self.by_key: dict[str, list[int]] = defaultdict(list)
        self.memory: list[Numbers] = []

    def let(self, count: int) -> None:
        self._gate.release(count)

    def open(self) -> None:
        """Write everything at once from now on."""
        self._closed = False
        self.let(1000)

    def put(self, writer: WriteBehind, values: Numbers, key: str = "a") -> None:
        def fill(copy: Numbers) -> None:
            copy[...] = values
            with self._lock:
                self.unwritten += len(copy)
                self.most_unwritten = max(self.most_unwritten, self.unwritten)

        def write(copy: Numbers) -> None:
            if self._closed:
                self._gate.acquire()
            if error := self._failures.get(int(copy[0])):
                raise error
            self.memory.append(copy)
            with self._lock:
                self.unwritten -= len(copy)
                self.written.append(copy.tolist())
                self.by_key[key].append(int(copy[0]))

        writer.put(key, values.shape, values.dtype, fill, write)


class Checks:
    """Called while a caller waits; raises `error` if set, or after a time limit."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._called = threading.Event()
        self._end = time.monotonic() + 2 * LONG_S

    def __call__(self) -> None:
        self._called.set()
        if time.monotonic() > self._end:
            raise TimeoutError
        if self.error is not None:
            raise self.error

    def wait_for_one(self) -> None:
        """Return when a caller waits after this call."""
        self._called.clear()
        assert self._called.wait(LONG_S)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def numbers(first: int, count: int = 1) -> Numbers:
    return np.arange(first, first + count, dtype=np.int64)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.open()


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that creates writers, which are closed at the end."""
    made: list[WriteBehind] = []

    def start(
        threads: int, window_bytes: int, check: Callable[[], None] | None = None
    ) -> WriteBehind:
        made.append(WriteBehind(threads, window_bytes, check or Checks()))
        return made[-1]

    yield start
    for writer in made:
        writer.close()


@pytest.fixture
def pool(start: Start, disk: Disk) -> Iterator[ThreadPoolExecutor]:
    """A thread in which a model computes; at the end everything is written."""
    with ThreadPoolExecutor(1) as pool:
        yield pool
        disk.open()


def test_a_model_is_never_more_than_the_window_ahead(
    start: Start, disk: Disk, pool: ThreadPoolExecutor
) -> None:
    checks = Checks()
    writer = start(1, 3 * ITEM, checks)
    queued: list[int] = []

    def compute() -> None:
        for n in range(8):
            disk.put(writer, numbers(n))
            queued.append(n)

    model = pool.submit(compute)
    for n in range(5):
        until(lambda: len(queued) == len(disk.written) + 3)
        # The model waits, or it would have recorded the next array.
        checks.wait_for_one()
        assert len(queued) == n + 3
        disk.let(1)
    disk.open()
    model.result(LONG_S)
    writer.flush()
    assert disk.written == [[n] for n in range(8)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_window_holds_for_arrays_of_any_size(start: Start, disk: Disk, threads: int) -> None:
    writer = start(threads, 10 * ITEM)
    disk.open()
    sizes = np.random.default_rng(1).integers(1, 10, 500)
    for n, size in enumerate(sizes):
        disk.put(writer, numbers(n, size), key=str(n))
    writer.flush()

    assert sorted(disk.written) == [numbers(n, size).tolist() for n, size in enumerate(sizes)]
    assert disk.most_unwritten <= 10


def test_an_array_larger_than_the_window_goes_alone(
    start: Start, disk: Disk, pool: ThreadPoolExecutor
) -> None:
    checks = Checks()
    writer = start(2, 4 * ITEM, checks)
    disk.put(writer, numbers(0))
    large = pool.submit(disk.put, writer, numbers(1, 100), "large")
    checks.wait_for_one()
    assert (disk.unwritten, large.done()) == (1, False)
    disk.let(1)
    large.result(LONG_S)

    small = pool.submit(disk.put, writer, numbers(2), "small")
    checks.wait_for_one()
    assert (disk.unwritten, small.done()) == (100, False)
    disk.open()
    small.result(LONG_S)
    writer.flush()
    assert [values[0] for values in disk.written] == [0, 1, 2]


def test_the_same_key_is_written_in_order(start: Start, disk: Disk) -> None:
    writer = start(4, 1 << 20)
    disk.put(writer, numbers(0), "held up")
    disk.put(writer, numbers(1), "held up")
    for n in range(20):
        disk.put(writer, numbers(n), f"other {n}")
    disk.open()
    for n in range(2, 500):
        disk.put(writer, numbers(n), "held up")
        disk.put(writer, numbers(n), f"other {n % 20}")
    writer.flush()
    assert disk.by_key["held up"] == list(range(500))
    for n in range(20):
        assert disk.by_key[f"other {n}"] == sorted(disk.by_key[f"other {n}"])


def test_queued_arrays_may_be_overwritten(start: Start, disk: Disk) -> None:
    writer = start(1, 1 << 20)
    state = numbers(0, 3)
    for _ in range(4):
        disk.put(writer, state)
        state += 3
    disk.open()
    writer.flush()
    assert np.concatenate(disk.written).tolist() == list(range(12))


def test_memory_is_reused(start: Start, disk: Disk) -> None:
    writer = start(1, 1 << 20)
    disk.open()
    for n in range(10):
        disk.put(writer, numbers(n, 5))
        writer.flush()
    # The references are held, so no memory was freed and allocated again by chance.
    assert len(disk.memory) == 10
    assert all(np.shares_memory(disk.memory[0], each) for each in disk.memory)


def test_memory_does_not_grow_with_the_number_of_sizes(start: Start, disk: Disk) -> None:
    window = 1000 * ITEM
    writer = start(1, window)
    seen: dict[int, weakref.ref[Any]] = {}
    for size in range(400, 500):
        disk.let(2)
        disk.put(writer, numbers(0, size))
        disk.put(writer, numbers(1, size))
        writer.flush()
        for copy in disk.memory:
            whole = copy if copy.base is None else copy.base
            seen[id(whole)] = weakref.ref(whole)
            del whole
        del copy
        disk.memory.clear()

    held = sum(array.nbytes for ref in seen.values() if (array := ref()) is not None)
    # The thread still refers to the last one, too.
    assert held <= 2 * window


def test_the_next_put_raises_a_failure(
    start: Start,
) -> None:
    disk = Disk({0: OSError("no space left")})
    disk.open()
    writer = start(1, ITEM)
    disk.put(writer, numbers(0))
    # There is room for one array, so the first write was attempted by now.
    with pytest.raises(OSError, match="no space left"):
        disk.put(writer, numbers(1))
    with pytest.raises(OSError, match="no space left"):
        disk.put(writer, numbers(2))
    with pytest.raises(OSError, match="no space left"):
        writer.flush()
    assert disk.written == []


def test_flush_raises_a_failure_and_writing_stops(
    start: Start,
) -> None:
    disk = Disk({1: OSError("no space left")})
    writer = start(1, 1 << 20)
    for n in range(5):
        disk.put(writer, numbers(n))
    disk.open()
    for _ in range(2):
        with pytest.raises(OSError, match="no space left"):
            writer.flush()
    writer.close()
    assert disk.written == [[0]]


def test_a_failure_is_raised_in_a_caller_that_waits_for_room(
    start: Start, pool: ThreadPoolExecutor
) -> None:
    disk = Disk({0: OSError("no space left")})
    checks = Checks()
    writer = start(1, ITEM, checks)
    disk.put(writer, numbers(0))
    waiting = pool.submit(disk.put, writer, numbers(1))
    checks.wait_for_one()
    disk.open()
    with pytest.raises(OSError, match="no space left"):
        waiting.result(LONG_S)


def test_an_array_that_cannot_be_copied_frees_its_room(start: Start, disk: Disk) -> None:
    def fail(_: Numbers) -> None:
        raise ValueError("it does not fit")

    writer = start(1, ITEM)
    with pytest.raises(ValueError, match="it does not fit"):
        writer.put("a", (1,), np.int64, fill=fail, write=fail)
    disk.open()
    disk.put(writer, numbers(7))
    writer.flush()
    assert disk.written == [[7]]


@pytest.mark.parametrize("what", ["put", "flush"])
def test_a_waiting_caller_can_be_stopped(
    start: Start, disk: Disk, pool: ThreadPoolExecutor, what: str
) -> None:
    checks = Checks()
    writer = start(1, ITEM, checks)
    disk.put(writer, numbers(0))
    waiting: Future[None] = (
        pool.submit(disk.put, writer, numbers(1)) if what == "put" else pool.submit(writer.flush)
    )
    checks.wait_for_one()
    assert not waiting.done()
    checks.error = InterruptedError("cancelled")
    with pytest.raises(InterruptedError, match="cancelled"):
        waiting.result(LONG_S)
    assert disk.written == []


def test_a_waiting_caller_can_be_stopped_while_the_disk_is_busy(
    start: Start,
) -> None:
    def check() -> None:
        if written:
            raise InterruptedError("cancelled")

    def write(copy: Numbers) -> None:
        time.sleep(0.01)
        written.append(int(copy[0]))

    written: list[int] = []
    writer = start(1, 1 << 20, check)
    for n in range(1000):
        writer.put("a", (1,), np.int64, fill=lambda copy, n=n: copy.fill(n), write=write)
    with pytest.raises(InterruptedError, match="cancelled"):
        writer.flush()
    assert len(written) < 1000


def test_closing_drops_unwritten_arrays_and_ends_the_threads(
    start: Start, disk: Disk, pool: ThreadPoolExecutor
) -> None:
    others = set(threading.enumerate())
    writer = start(2, 1 << 20)
    threads = set(threading.enumerate()) - others
    assert len(threads) == 2
    for n in range(20):
        disk.put(writer, numbers(n), f"key {n}")
    disk.let(2)
    until(lambda: len(disk.written) == 2)

    def is_closed() -> bool:
        try:
            disk.put(writer, numbers(20))
        except RuntimeError:
            return True
        return False

    closing = pool.submit(writer.close)
    until(is_closed)
    assert not closing.done()
    # Writes in progress are completed.
    disk.open()
    closing.result(LONG_S)
    assert not any(thread.is_alive() for thread in threads)
    assert len(disk.written) <= 4


def test_a_closed_writer_accepts_nothing(start: Start, disk: Disk) -> None:
    writer = start(1, 1 << 20)
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        disk.put(writer, numbers(0))
    writer.flush()
    writer.close()
    assert disk.written == []


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "f4"), ((3, 4), "f8"), ((2, 0, 5), "f4"), ((3,), "i8"), ((2,), "U3"), ((2,), "M8[ns]")],
)
def test_arrays_of_any_shape_and_type(start: Start, shape: tuple[int, ...], dtype: str) -> None:
    written = []
    writer = start(1, 1 << 20)
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    writer.put("a", shape, dtype, lambda copy: np.copyto(copy, values), written.append)
    writer.flush()
    np.testing.assert_array_equal(written[0], values)
    assert written[0].dtype == values.dtype

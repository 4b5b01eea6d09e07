"""The Range header."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.files.ranges import MAX_RANGES, requested_ranges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", [range(0, 1)]),
        ("bytes=2-5", [range(2, 6)]),
        ("bytes=0-99", [range(0, 10)]),
        ("bytes=4-", [range(4, 10)]),
        ("bytes=-3", [range(7, 10)]),
        ("bytes=-99", [range(0, 10)]),
        ("BYTES=0-1", [range(0, 2)]),
        ("bytes=007-0008", [range(7, 9)]),
        ("bytes=7-8, 0-1", [range(7, 9), range(0, 2)]),
        ("bytes=,0-1 ,\t,4-5,", [range(0, 2), range(4, 6)]),
        ("bytes=8-,4-6,0-1,5-7", [range(4, 10), range(0, 2)]),
        ("bytes=10-,0-1,-0", [range(0, 2)]),
        ("bytes=10-", []),
        ("bytes=10-20,-0", []),
        (f"bytes=0-{'9' * 6000}", [range(0, 10)]),
        (f"bytes=-{'9' * 6000}", [range(0, 10)]),
        (f"bytes={'9' * 6000}-", []),
        (f"bytes=1-{'0' * 6000}2", [range(1, 3)]),
        (f"bytes={'9' * 6000}-{'8' * 6000}", None),
        ("bytes=5-4", None),
        ("bytes=0-1,5-4", None),
        ("bytes=", None),
        ("bytes=,", None),
        ("bytes=-", None),
        ("bytes=--1", None),
        ("bytes=+1-2", None),
        ("bytes=1 - 2", None),
        ("bytes=0-1;2-3", None),
        ("bytes=a-b", None),
        ("bytes=1_0-11", None),
        ("bytes=٣-٤", None),
        ("bytes =0-1", None),
        ("bytes", None),
        ("items=0-1", None),
        ("", None),
    ],
)
def test_range_headers(header: str, expected: list[range] | None) -> None:
    assert requested_ranges(header, 10) == expected


def test_an_empty_file_has_no_range() -> None:
    assert requested_ranges("bytes=0-", 0) == []
    assert requested_ranges("bytes=-0", 0) == []
    assert requested_ranges("bytes=-5", 0) is None


def test_ranges_are_counted_after_merging() -> None:
    overlapping = ",".join(["0-"] * 1000)
    assert requested_ranges(f"bytes={overlapping}", 10**6) == [range(10**6)]
    separate = [f"{2 * i}-{2 * i}" for i in range(MAX_RANGES + 1)]
    assert len(requested_ranges(f"bytes={','.join(separate[:-1])}", 10**6) or []) == MAX_RANGES
    assert requested_ranges(f"bytes={','.join(separate)}", 10**6) is None


@pytest.mark.parametrize("element", ["0-", "-1", ",", "9" * 100 + "-", "5-4", "1-1,"])
def test_huge_headers_are_cheap(element: str) -> None:
    header = "bytes=" + ",".join([element] * (10**6 // len(element)))
    start = time.perf_counter()
    requested_ranges(header, 10**9)
    requested_ranges(header[:16_000], 10**9)
    assert time.perf_counter() - start < 0.5


positions = st.integers(0, 40) | st.integers(10**18, 10**25)


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, set[int] | None]:
    """Draw a range, and the positions that it selects in a file of 30 bytes; None if invalid."""
    first, last = draw(positions), draw(positions)
    match draw(st.sampled_from(["closed", "open", "suffix"])):
        case "closed":
            selected = {i for i in range(30) if first <= i <= last} if first <= last else None
            return f"{first}-{last}", selected
        case "open":
            return f"{first}-", {i for i in range(30) if i >= first}
        case _:
            return f"-{last}", {i for i in range(30) if i >= 30 - last}


@given(st.lists(specs(), min_size=1, max_size=8))
def test_ranges_match_a_simple_model(drawn: list[tuple[str, set[int] | None]]) -> None:
    ranges = requested_ranges("bytes=" + ",".join(spec for spec, _ in drawn), 30)
    selected = [positions for _, positions in drawn]
    if None in selected:
        assert ranges is None
        return
    assert ranges is not None
    sent = [position for part in ranges for position in part]
    assert len(sent) == len(set(sent)), "no byte twice"
    assert set(sent) == set().union(*(positions or set() for positions in selected))
    stops = {part.stop for part in ranges}
    assert not any(part.start in stops for part in ranges), "adjacent ranges are merged"
    # Each part has the position of the first requested range in it.
    firsts = [
        min(i for i, positions in enumerate(selected) if positions and positions <= set(part))
        for part in ranges
    ]
    assert firsts == sorted(firsts)


@given(st.text() | st.text("0123456789-, ").map("bytes=".__add__), st.integers(0, 50))
@example("bytes=-1", 0)
def test_any_text_yields_valid_ranges(header: str, size: int) -> None:
    for part in requested_ranges(header, size) or []:
        assert 0 <= part.start < part.stop <= size

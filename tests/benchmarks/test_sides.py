import pytest

from benchmarks.report import Aim, Report
from benchmarks.sides import Side, Sides, Turns, in_turns, report_ratio
from benchmarks.workloads import BENCH_PERSISTENCE

SIDES = Sides(
    Side("ours", "http://ours", BENCH_PERSISTENCE),
    Side("theirs", "http://theirs", BENCH_PERSISTENCE),
)


async def test_who_begins_changes_with_every_round() -> None:
    order = []

    async def run(side: Side) -> int:
        order.append(side.name)
        return len(order)

    turns = await in_turns(SIDES, 3, run)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert turns == Turns(ours=[1, 4, 5], theirs=[2, 3, 6])


def test_a_ratio_is_the_median_of_neighbours() -> None:
    report = Report(owns_server=False)
    # The second round fell on a busy moment, which both sides saw.
    turns = Turns(ours=[1.0, 30.0, 3.0], theirs=[2.0, 40.0, 2.0])
    report_ratio(report, "job", turns, "s", aim=Aim(1.0))
    (figure,) = report.figures
    assert figure.value == pytest.approx(0.75)
    assert figure.note == "0.50 to 1.50; ours 3, theirs 2 s"
    assert figure.runs == {"ours, s": turns.ours, "theirs, s": turns.theirs}

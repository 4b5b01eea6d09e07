import pytest

from benchmarks.report import Report, Target
from benchmarks.sides import Runs, Side, Sides, alternate, report_ratio
from benchmarks.workloads import BENCH_PERSISTENCE

SIDES = Sides(
    Side("ours", "http://ours", BENCH_PERSISTENCE),
    Side("theirs", "http://theirs", BENCH_PERSISTENCE),
)


async def test_the_first_server_changes_with_every_round() -> None:
    order = []

    async def run(side: Side) -> int:
        order.append(side.name)
        return len(order)

    runs = await alternate(SIDES, 3, run)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert runs == Runs(ours=[1, 4, 5], theirs=[2, 3, 6])


def test_a_ratio_is_the_median_of_neighbouring_runs() -> None:
    report = Report(owns_server=False)
    # Both sides were slow in the second round, when the machine was busy.
    runs = Runs(ours=[1.0, 30.0, 3.0], theirs=[2.0, 40.0, 2.0])
    report_ratio(report, "job", runs, "s", target=Target(1.0))
    (figure,) = report.figures
    assert figure.value == pytest.approx(0.75)
    assert figure.note == "0.50 to 1.50; ours 3, theirs 2 s"
    assert figure.runs == {"ours, s": runs.ours, "theirs, s": runs.theirs}

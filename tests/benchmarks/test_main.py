import pytest

from benchmarks.__main__ import parse
from benchmarks.workloads import BENCH_PERSISTENCE, FCN3, Workload

BOTH = ["--base", "http://a/", "--against", "http://b/"]


def test_two_urls_ask_for_a_comparison() -> None:
    given, workload = parse([*BOTH, "--only", "queue", "zarr"])
    assert (given.base, given.against) == ("http://a", "http://b")
    assert workload == BENCH_PERSISTENCE


def test_one_url_or_none_does_not() -> None:
    assert parse([])[1] is None
    assert parse(["--base", "http://a", "--only", "memory"])[1] is None


def test_jobs_can_be_given() -> None:
    _, workload = parse([*BOTH, "--workflow", FCN3.workflow, "--tiny", '{"n_steps": 2}'])
    assert workload == Workload(FCN3.workflow, {"n_steps": 2}, FCN3.large)
    _, workload = parse([*BOTH, "--workflow", "mine", "--tiny", "{}", "--large", '{"a": 1}'])
    assert workload == Workload("mine", {}, {"a": 1})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "http://b"], "--against needs --base"),
        (["--base", "http://a", "--workflow", "x"], "need --against"),
        (["--only", "queue"], "--only queue"),
        ([*BOTH, "--only", "memory"], "--only memory"),
        ([*BOTH, "--workflow", "unknown"], "give --tiny and --large"),
        ([*BOTH, "--tiny", "3"], "not an object"),
        ([*BOTH, "--tiny", "{"], "not an object"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert said in capsys.readouterr().err

import pytest

from benchmarks.__main__ import parse
from benchmarks.workloads import BENCH_PERSISTENCE, FCN3, Workload

BOTH = ["--base", "http://a/", "--against", "http://b/"]


def test_two_urls_request_a_comparison() -> None:
    options, workload = parse([*BOTH, "--only", "queue", "zarr"])
    assert (options.base, options.against) == ("http://a", "http://b")
    assert workload == BENCH_PERSISTENCE


def test_one_url_or_none_requests_no_comparison() -> None:
    assert parse([])[1] is None
    assert parse(["--base", "http://a", "--only", "memory"])[1] is None


def test_jobs_can_be_set() -> None:
    _, workload = parse([*BOTH, "--workflow", FCN3.workflow, "--tiny", '{"n_steps": 2}'])
    assert workload == Workload(FCN3.workflow, {"n_steps": 2}, FCN3.large)
    _, workload = parse([*BOTH, "--workflow", "mine", "--tiny", "{}", "--large", '{"a": 1}'])
    assert workload == Workload("mine", {}, {"a": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "http://b"], "--against needs --base"),
        (["--base", "http://a", "--workflow", "x"], "need --against"),
        (["--only", "queue"], "--only queue"),
        ([*BOTH, "--only", "memory"], "--only memory"),
        ([*BOTH, "--workflow", "unknown"], "set --tiny and --large"),
        ([*BOTH, "--tiny", "3"], "not a JSON object"),
        ([*BOTH, "--tiny", "{"], "not a JSON object"),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err

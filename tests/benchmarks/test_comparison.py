import json
from pathlib import Path

import pytest

from benchmarks.comparison import compare
from benchmarks.workloads import BENCH_PERSISTENCE
from tests.benchmarks.peer import Peer, serving

SMALL = {"tiny", "queue", "requests"}


async def test_two_servers_are_compared(tmp_path: Path) -> None:
    ours, theirs = Peer(), Peer()
    results = tmp_path / "comparison.json"
    async with serving(ours) as base, serving(theirs) as against:
        done = await compare(base, against, BENCH_PERSISTENCE, SMALL, quick=True, results=results)
    assert done
    document = json.loads(results.read_text())
    assert document["compared"] == {
        "ours": base,
        "theirs": against,
        "workflow": "bench_persistence",
    }
    figures = {figure["name"]: figure for figure in document["figures"]}
    assert list(figures) == [
        "first job, ours",
        "first job, theirs",
        "tiny job, zarr",
        "tiny job, netcdf4",
        "20 queued, until all completed",
        "submit, 1 client",
        "status, 1 client",
        "submit, 32 clients",
        "status, 32 clients",
    ]
    assert set(figures["submit, 32 clients"]["runs"]) == {"ours, /s", "theirs, /s"}
    assert ours.submitted == theirs.submitted
    assert ours.submitted[0] == {**BENCH_PERSISTENCE.tiny, "output_format": "zarr"}


async def test_every_submitted_job_is_followed_until_it_ends(tmp_path: Path) -> None:
    peer = Peer()
    async with serving(peer) as base:
        await compare(
            base, base, BENCH_PERSISTENCE, {"requests"}, quick=True, results=tmp_path / "json"
        )
    assert len(peer.submitted) > 2 * 400
    assert len(peer.seen_completed) == len(peer.submitted)


async def test_a_full_queue_ends_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "comparison.json"
    async with serving(Peer()) as base, serving(Peer(max_jobs=100)) as against:
        done = await compare(base, against, BENCH_PERSISTENCE, SMALL, quick=True, results=results)
    assert not done
    assert f"{against} refused" in capsys.readouterr().out
    kept = [figure["name"] for figure in json.loads(results.read_text())["figures"]]
    assert kept[-1] == "20 queued, until all completed"

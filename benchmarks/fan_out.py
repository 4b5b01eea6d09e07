"""Members spread over GPUs, and a small request beside a large one."""

from __future__ import annotations

import asyncio
from statistics import median

import uvloop

from benchmarks.client import Client
from benchmarks.report import Report, Target
from benchmarks.stand_in_gpus import SleepingServer, sleeping_server
from benchmarks.timeline import busy, makespan, pauses, timeline
from benchmarks.workloads import FCN3

STEP_S = 0.25
MEMBERS, STEPS, GPUS = 32, 8, 8
QUICK_MEMBERS = 16
UNEVEN = 12
"""A number of members that is no multiple of the GPUs."""
FAN_OUT_TARGET = Target(7.0, at_least=True)
LARGE = {"n_samples": 32, "n_steps": STEPS, "variables": ["t2m"], "output_format": "zarr"}
SMALL = {**LARGE, "n_samples": 1}
WAIT_TARGET = Target(1.1)


def measure_fan_out(report: Report, *, quick: bool) -> None:
    """Compare the members of one execution on eight stand-in GPUs and on one."""
    members = QUICK_MEMBERS if quick else MEMBERS
    rounds = 1 if quick else 3
    report.start(f"{members} members of {STEPS} steps of {STEP_S:g} s, {GPUS} stand-in GPUs or 1")
    seconds: dict[int, list[float]] = {1: [], GPUS: []}
    with sleeping_server("eight GPUs", step_s=STEP_S, gpus=GPUS) as server:
        uvloop.run(_run(server, GPUS))
        report.restart_watch()
        uneven = uvloop.run(_run(server, UNEVEN))
        for _ in range(rounds):
            seconds[GPUS].append(uvloop.run(_run(server, members)))
        steps = server.steps()
    print(timeline(steps, STEPS), flush=True)
    eight = median(seconds[GPUS])
    report.add(f"{GPUS} GPUs, submit to completed", eight, "s", note=_spread(seconds[GPUS]))
    report.add(f"{GPUS} GPUs, first step to last", makespan(steps), "s", note="of the last run")
    report.add(f"{GPUS} GPUs, busy", 100 * busy(steps), "%", note="the same")
    between = pauses(steps, STEPS)
    report.add("pause between two members", 1e3 * median(between), "ms", note=_spread(between))
    ideal = -(-UNEVEN // GPUS) * STEPS * STEP_S
    report.add(f"{UNEVEN} members on {GPUS} GPUs / ideal", uneven / ideal, "x")
    report.restart_watch()
    with sleeping_server("one GPU", step_s=STEP_S) as server:
        seconds[1].append(uvloop.run(_run(server, members)))
    report.add("1 GPU, submit to completed", seconds[1][0], "s")
    report.add("times as fast", seconds[1][0] / eight, "x", target=FAN_OUT_TARGET)


async def _run(server: SleepingServer, members: int) -> float:
    server.clear_journal()
    async with Client.connected(server.base, FCN3.path) as client:
        return (await client.run_job({**LARGE, "n_samples": members})).seconds


def _spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def measure_fairness(report: Report, *, quick: bool) -> None:
    """Measure a request for one member: alone, behind one large request, and behind three."""
    report.start(
        f"1 member of {STEPS} steps of {STEP_S:g} s behind {LARGE['n_samples']} such members, 1 GPU"
    )
    with sleeping_server("fairness", step_s=STEP_S) as server:
        uvloop.run(_measure_fairness(report, server, quick))


async def _measure_fairness(report: Report, server: SleepingServer, quick: bool) -> None:
    member_s = STEPS * STEP_S
    async with Client.connected(server.base, FCN3.path) as client:
        await client.run_job(SMALL)
        report.restart_watch()
        alone = [(await client.run_job(SMALL)).seconds for _ in range(2 if quick else 5)]
        report.add("alone, submit to completed", median(alone), "s", note=_spread(alone))
        for large in (1,) if quick else (1, 3):
            running = [await client.submit(LARGE) for _ in range(large)]
            # Until the first one computes, and not at the start of a member.
            await asyncio.sleep(2.3 * member_s)
            report.restart_watch()
            seconds = []
            for _ in range(1 if quick else 4):
                seconds.append((await client.run_job(SMALL)).seconds)
                await asyncio.sleep(0.3 * member_s)
            name = f"behind {large} large" if large > 1 else "behind a large one"
            report.add(f"{name}, submit to completed", median(seconds), "s", note=_spread(seconds))
            waited = (median(seconds) - median(alone)) / member_s
            report.add(f"{name}, other members waited for", waited, "", target=WAIT_TARGET)
            for execution_id in running:
                await client.connection.delete(f"{client.path}/{execution_id}")
            await asyncio.sleep(2 * member_s)

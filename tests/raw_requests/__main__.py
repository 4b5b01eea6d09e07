"""Send many mutated requests to a server: ``python -m tests.raw_requests PORT [COUNT] [SEED]``."""

from __future__ import annotations

import itertools
import sys
import time

from tests.integration.serving import Server
from tests.raw_requests.answers import send_all
from tests.raw_requests.mutations import mutated, valid_requests


def main() -> None:
    """Print the answers' statuses and every wrong one; exit with 1 if there is any."""
    port, count, seed = (int(text) for text in (*sys.argv[1:], "4000", "1")[:3])
    server = Server("", f"http://127.0.0.1:{port}")
    execution_id = server.submit(n_steps=1, n_samples=1, variables=["t2m"], output_format="zarr")
    server.completed(execution_id)
    started = time.monotonic()
    requests = itertools.islice(mutated(valid_requests(execution_id), seed), count)
    verdict = send_all(port, requests)
    print(f"{count} requests in {time.monotonic() - started:.0f} s: {dict(verdict.statuses)}")
    for request, problem in verdict.wrong:
        print(f"{request[:300]!r}\n  {problem}")
    sys.exit(bool(verdict.wrong))


if __name__ == "__main__":
    main()

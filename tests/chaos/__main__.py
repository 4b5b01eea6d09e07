"""Kill what can be killed, for long: ``make chaos``, ``python -m tests.chaos --kills 200``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.conftest import postgres_server
from tests.emulators.azurite import Azurite, find_azurite


def main() -> int:
    """Run a campaign on several nodes and one on a single node, and say what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=["nodes", "disk"])
    parser.add_argument("--keep", action="store_true", help="leave logs and folders")
    arguments = parser.parse_args()
    executable = find_azurite()
    if executable is None:
        parser.error("Azurite is missing: npm ci --prefix tests/emulators")
    clean = True
    for kind in [arguments.only] if arguments.only else ["nodes", "disk"]:
        kills = arguments.kills if arguments.only else arguments.kills // 2
        folder = Path(tempfile.mkdtemp(prefix=f"e2s-chaos-{kind}-"))
        with contextlib.ExitStack() as stack:
            if not arguments.keep:
                stack.callback(_remove, folder)
            campaign = Campaign(
                folder,
                stack.enter_context(Azurite(executable)),
                stack.enter_context(postgres_server()) if kind == "nodes" else None,
                n_workers=2 if kind == "nodes" else 0,
                kills=kills,
                restarts=max(kills // 50, 1),
                seed=arguments.seed,
            )
            verdict, done, load = campaign.run()
        print(f"\n{kind}: {verdict}\n{done.report()}")
        print(f"what clients saw besides answers: {dict(load.errors)}", flush=True)
        clean = clean and verdict.is_clean and not load.refused
        print("\n".join(load.refused))
    return 0 if clean else 1


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

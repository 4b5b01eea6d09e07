"""Print the log entries of one execution: ``python -m serve_app.logs EXECUTION_ID``.

Collects the lines of all processes, sorted by time, from Ray's log folder, rotated files included.
It only reads files: neither Ray nor the server have to run.

Each node has its own log folder. Pass several with --ray-logs, mounted or copied from the nodes. On
Kubernetes, config/kuberay/logs.sh runs this command in every pod. The logs of a pod are lost with
it, unless a volume is mounted at /tmp/ray or a log collector keeps them (JSON logs can be filtered
by execution_id).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TEXT = re.compile(
    r"(?P<level>[A-Z]+) (?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?P<source>\S+ \S+) "
    r"(?P<rest>.*)"
)
"""First line of an entry in Serve's text format; lines that do not match continue an entry."""
MESSAGE = re.compile(r"^(?:(?P<request>[0-9a-f-]{36}) )?-- ")


@dataclass
class Entry:
    """One log entry, with its traceback if it has one."""

    time: str
    """As logged: local time of its node."""
    level: str
    source: str
    lines: list[str] = field(default_factory=list)
    execution_id: str | None = None
    """From JSON entries; in text entries the id is a part of the message."""
    stage: str | None = None

    def concerns(self, execution_id: str) -> bool:
        """Return whether the entry belongs to an execution, or names it."""
        if self.execution_id is not None:
            return self.execution_id == execution_id
        named = re.compile(rf"(?<![\w-]){re.escape(execution_id)}(?![\w-])")
        return any(named.search(line) for line in self.lines)

    def __str__(self) -> str:
        stage = f" [{self.stage}]" if self.stage else ""
        first, *others = self.lines or [""]
        return "\n".join([f"{self.time} {self.level} {self.source}{stage} {first}", *others])


def entries(lines: Iterable[str], source: str) -> Iterator[Entry]:
    """Yield the entries of a file; text and JSON may be mixed."""
    current: Entry | None = None
    for line in lines:
        line = line.rstrip("\n")
        entry = _json_entry(line, source) or _text_entry(line)
        if entry is not None:
            if current is not None:
                yield current
            current = entry
        elif current is not None:
            current.lines.append(line)
    if current is not None:
        yield current


def _json_entry(line: str, source: str) -> Entry | None:
    if not line.startswith("{"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None  # text, or a line that was cut when its process died
    if not isinstance(values, dict) or "asctime" not in values:
        return None
    replica = " ".join(str(values[key]) for key in ("deployment", "replica") if key in values)
    lines = str(values.get("message", "")).split("\n")
    if traceback := values.get("exc_text"):
        lines += str(traceback).split("\n")
    return Entry(
        time=str(values["asctime"]),
        level=str(values.get("levelname", "")),
        source=replica or source,
        lines=lines,
        execution_id=values.get("execution_id"),
        stage=values.get("stage"),
    )


def _text_entry(line: str) -> Entry | None:
    match = TEXT.fullmatch(line)
    if match is None:
        return None
    message = MESSAGE.sub("", match["rest"])
    return Entry(match["time"], match["level"], match["source"], [message])


def log_files(folder: Path) -> list[Path]:
    """Return the log files of Serve's processes in Ray's log folder, oldest rotation first."""
    serve = folder / "serve"
    return sorted(
        (serve if serve.is_dir() else folder).rglob("*.log*"),
        key=lambda path: (path.name.partition(".log")[0], -_rotations(path)),
    )


def _rotations(path: Path) -> int:
    """Return how often a file was rotated: 0 for x.log, 1 for x.log.1."""
    suffix = path.name.rpartition(".log")[2].lstrip(".")
    return int(suffix) if suffix.isdecimal() else 0


def gather(execution_id: str, folders: Iterable[Path]) -> list[Entry]:
    """Return the entries of an execution, sorted by time."""
    found: list[Entry] = []
    for folder in folders:
        for path in log_files(folder):
            with path.open(encoding="utf-8", errors="replace") as file:
                found += (e for e in entries(file, path.stem) if e.concerns(execution_id))
    # The sort is stable, so entries of one process within a millisecond keep their order.
    return sorted(found, key=lambda entry: entry.time)


def main(arguments: list[str] | None = None) -> int:
    """Print the entries of the execution that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.logs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("execution_id", metavar="EXECUTION_ID")
    parser.add_argument(
        "--ray-logs",
        metavar="DIR",
        type=Path,
        action="append",
        help="Ray's log folder of a node; the default is /tmp/ray/session_latest/logs",
    )
    options = parser.parse_args(arguments)
    ray_dir = os.environ.get("RAY_TMPDIR") or "/tmp/ray"  # noqa: S108
    folders = options.ray_logs or [Path(ray_dir, "session_latest", "logs")]
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"--ray-logs: {folder} is not a folder")
    found = gather(options.execution_id, folders)
    if not found:
        n_files = sum(len(log_files(folder)) for folder in folders)
        print(
            f"no entry of {options.execution_id} in {n_files} files below "
            f"{', '.join(map(str, folders))}. Each node and each session of Ray has its own log "
            "folder; see --help.",
            file=sys.stderr,
        )
        return 1
    for entry in found:
        print(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())

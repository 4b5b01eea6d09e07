"""Print what was logged of one execution: ``python -m serve_app.logs EXECUTION_ID``.

All processes' lines, in the order of time, out of the folder in which Ray keeps the logs of its
session, rotated files included. It reads files alone: neither Ray nor the server need to run.

Each node has its own folder. Name several with --ray-logs: mounted, or copied from the nodes. On
Kubernetes config/kuberay/logs.sh calls this in every pod that is there. A pod's logs end with it,
unless a volume is mounted at /tmp/ray or a collector takes them elsewhere (with JSON encoding it
can be asked for execution_id).
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
"""Begin of a line as Serve writes it; what follows without one belongs to it."""
MESSAGE = re.compile(r"^(?:(?P<request>[0-9a-f-]{36}) )?-- ")
NOTHING = 1


@dataclass
class Entry:
    """One entry of a log, with its traceback if it has one."""

    time: str
    """As it was written: local time of its node."""
    level: str
    source: str
    lines: list[str] = field(default_factory=list)
    execution_id: str | None = None
    """If the entry says so; in text it stands in the words."""
    stage: str | None = None

    def concerns(self, execution_id: str) -> bool:
        """Say whether it is about an execution, or names it."""
        if self.execution_id is not None:
            return self.execution_id == execution_id
        named = re.compile(rf"(?<![\w-]){re.escape(execution_id)}(?![\w-])")
        return any(named.search(line) for line in self.lines)

    def __str__(self) -> str:
        stage = f" [{self.stage}]" if self.stage else ""
        first, *others = self.lines or [""]
        return "\n".join([f"{self.time} {self.level} {self.source}{stage} {first}", *others])


def entries(lines: Iterable[str], source: str) -> Iterator[Entry]:
    """Read the entries of a file, in JSON or in text, or first the one and then the other."""
    entry: Entry | None = None
    for line in lines:
        line = line.rstrip("\n")
        begun = _json_entry(line, source) or _text_entry(line)
        if begun is not None:
            if entry is not None:
                yield entry
            entry = begun
        elif entry is not None:
            entry.lines.append(line)
    if entry is not None:
        yield entry


def _json_entry(line: str, source: str) -> Entry | None:
    if not line.startswith("{"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None  # a line of text, or one that was cut by the end of its process
    if not isinstance(values, dict) or "asctime" not in values:
        return None
    where = " ".join(str(values[key]) for key in ("deployment", "replica") if key in values)
    lines = str(values.get("message", "")).split("\n")
    if trace := values.get("exc_text"):
        lines += str(trace).split("\n")
    return Entry(
        time=str(values["asctime"]),
        level=str(values.get("levelname", "")),
        source=where or source,
        lines=lines,
        execution_id=values.get("execution_id"),
        stage=values.get("stage"),
    )


def _text_entry(line: str) -> Entry | None:
    found = TEXT.fullmatch(line)
    if found is None:
        return None
    message = MESSAGE.sub("", found["rest"])
    return Entry(found["time"], found["level"], found["source"], [message])


def log_files(folder: Path) -> list[Path]:
    """List the files of Serve's processes below Ray's folder of logs, the oldest part first."""
    serve = folder / "serve"
    return sorted(
        (serve if serve.is_dir() else folder).rglob("*.log*"),
        key=lambda path: (path.name.partition(".log")[0], -_age(path)),
    )


def _age(path: Path) -> int:
    """How often a file has been rotated: x.log is the newest, x.log.1 the one before."""
    suffix = path.name.rpartition(".log")[2].lstrip(".")
    return int(suffix) if suffix.isdecimal() else 0


def gather(execution_id: str, folders: Iterable[Path]) -> list[Entry]:
    """Collect what was logged of an execution, in the order of time."""
    found: list[Entry] = []
    for folder in folders:
        for path in log_files(folder):
            with path.open(encoding="utf-8", errors="replace") as file:
                found += (e for e in entries(file, path.stem) if e.concerns(execution_id))
    # Stable: what one process wrote within a millisecond stays in its order.
    return sorted(found, key=lambda entry: entry.time)


def _usual_folder(environment: dict[str, str] | os._Environ[str]) -> Path:
    return Path(environment.get("RAY_TMPDIR") or "/tmp/ray", "session_latest", "logs")  # noqa: S108


def main(arguments: list[str] | None = None) -> int:
    """Print the entries of the execution that is named on the command line."""
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
        help="Ray's folder of logs of a node; /tmp/ray/session_latest/logs unless given",
    )
    asked = parser.parse_args(arguments)
    folders = asked.ray_logs or [_usual_folder(os.environ)]
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"--ray-logs: {folder} is no folder")
    found = gather(asked.execution_id, folders)
    if not found:
        read = sum(len(log_files(folder)) for folder in folders)
        print(
            f"no line of {asked.execution_id} in {read} files below "
            f"{', '.join(map(str, folders))}. Each node has logs of its own, each session of Ray "
            "a folder; --help says more.",
            file=sys.stderr,
        )
        return NOTHING
    for entry in found:
        print(entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())

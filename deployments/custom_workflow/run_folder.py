"""The folder that one run of a user's workflow fills and that becomes the result.

Each run has its own folder, beside the results and on the same mount. It becomes the result by a
rename after a check of the fencing token, so that exactly one complete run of an execution is
delivered.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from deployments.results.disk_work import DiskWork
from deployments.results.manifest import MAX_LISTED, Listing, hash_file, list_files
from deployments.results.work import StoredObject
from deployments.runtime.files import remove_tree
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.manifest import CHECKSUMS, NETCDF, ZARR

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
"""Characters that download routes refuse; a line break would also split a line of checksums."""


class DeliveredFiles(NamedTuple):
    """The files of a run, delivered or not."""

    listing: Listing
    warnings: list[str]
    """Files that were not delivered, with the reasons."""


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    results_dir, work_dir : Path
        As for `deployments.results.store.ResultsStore`.
    workflow, execution_id : str
    fence : int
        Token of the Conductor that asked for the run.

    Raises
    ------
    StaleConductor
        If a newer token was seen.
    """

    def __init__(
        self, results_dir: Path, work_dir: Path, workflow: str, execution_id: str, fence: int
    ) -> None:
        self._work = DiskWork(work_dir / execution_id, execution_id)
        self._work.create_folder(fence)
        self._fence = fence
        self._execution_id = execution_id
        self._result = results_dir / workflow / execution_id
        self.path = results_dir / ".partial" / execution_id / secrets.token_hex(8)
        self.path.mkdir(parents=True)

    def deliver(
        self, known: Mapping[Path, StoredObject], max_listed: int = MAX_LISTED
    ) -> DeliveredFiles:
        """Describe all files and make the folder the result.

        Parameters
        ----------
        known : mapping of Path to StoredObject
            Size and checksum of files, which are not read again.

        Raises
        ------
        StageFailed
            If the execution was removed, or a file changed meanwhile.
        StaleConductor
            If a newer token was seen.
        """
        files, warnings = _files_below(self.path)
        # Of any type: writing would follow a link, or wait for a FIFO.
        if os.path.lexists(self.path / CHECKSUMS):
            raise StageFailed(Stage.PACKAGE, f"{CHECKSUMS} is reserved; rename your file")
        chunks = [key for key in files if _is_minor(key)]
        whole = [key for key in files if not _is_minor(key)]
        states = [self._state(key) for key in files]
        try:
            listing = list_files(
                self._described(whole, known),
                self._described(chunks, known),
                self.path / CHECKSUMS,
                self._execution_id,
                max_listed,
            )
            for key, state in zip(files, states, strict=True):
                if self._state(key) != state:
                    raise StageFailed(
                        Stage.PACKAGE, f"{key} was modified after the workflow had ended"
                    )
            self._work.check_fence(self._fence)
            self._result.parent.mkdir(parents=True, exist_ok=True)
            # An earlier run may have been delivered just before its Conductor died.
            remove_tree(self._result)
            self.path.rename(self._result)
        except FileNotFoundError:
            self._work.check_fence(self._fence)  # raises if the execution was removed
            raise
        try:
            self._work.check_fence(self._fence)
        except StageFailed:
            # The execution was removed meanwhile; nothing else would remove its result.
            remove_tree(self._result)
            raise
        return DeliveredFiles(listing, warnings)

    @property
    def is_empty(self) -> bool:
        """Whether the folder contains nothing but the output itself."""
        return all(path.name in (ZARR, NETCDF) for path in self.path.iterdir())

    def remove(self) -> None:
        """Remove the folder, unless it has become the result."""
        remove_tree(self.path)

    def _state(self, key: str) -> tuple[int, int] | None:
        """Return size and modification time of a file, by which changes are detected."""
        try:
            found = (self.path / key).stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    def _described(
        self, keys: list[str], known: Mapping[Path, StoredObject]
    ) -> Iterator[StoredObject]:
        for key in keys:
            path = self.path / key
            written = known.get(path)
            yield replace(written, key=key) if written else hash_file(path, key)


def _is_minor(key: str) -> bool:
    """Return whether a long list may omit a file: one in a subfolder, except Zarr's metadata."""
    return "/" in key and not (key.startswith(f"{ZARR}/") and key.endswith("/zarr.json"))


def _files_below(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files that can be delivered, ordered by name, and warnings about all others."""
    root = folder.resolve()
    found: list[str] = []
    warnings: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        # Links to folders are listed as folders, but not entered.
        links = [name for name in folders if os.path.islink(Path(parent, name))]
        for name in sorted([*names, *links]):
            path = Path(parent, name)
            key = path.relative_to(folder).as_posix()
            reason = _why_undeliverable(path, key, root)
            if reason is None:
                found.append(key)
            else:
                readable = os.fsencode(key).decode(errors="replace")
                warnings.append(f"{_UNUSABLE.sub('?', readable)}: {reason}")
    return found, warnings


def _why_undeliverable(path: Path, key: str, root: Path) -> str | None:
    """Return why a file cannot be delivered; None if it can."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if _UNUSABLE.search(key):
        return "its name has control characters or a backslash"
    if path.is_symlink():
        target = Path(os.path.realpath(path))  # `resolve` raises if it is a loop
        if not target.is_relative_to(root):
            return "a link that leads out of the results"
        if os.path.isabs(os.readlink(path)):
            return "an absolute link, which would break when the results are moved"
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a broken link"
    return None if stat.S_ISREG(mode) else "not a regular file"

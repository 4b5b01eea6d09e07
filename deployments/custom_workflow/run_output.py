"""The output of one run of a user's workflow, in the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from deployments.custom_workflow.backend import Output, as_backend
from deployments.custom_workflow.netcdf_backend import NetCDFOutput
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.custom_workflow.zarr_backend import ZarrOutput
from workflows.base import OutputFormat
from workflows.manifest import NETCDF, ZARR

THREADS = 2


class RunOutput:
    """An IOBackend for the class, and the threads that write behind it.

    Parameters
    ----------
    folder : Path
        Gets ``results.zarr`` or ``results.nc``.
    output_format : {'zarr', 'netcdf4'}
    window_bytes : int
        Bytes that may be handed over but unwritten.
    max_bytes : int
        Bound on the sum of all arrays, uncompressed.
    check : callable
        Raises if the class shall stop.
    waiting : callable
        Gives a context for the time in which the class waits for the disk.
    """

    def __init__(
        self,
        folder: Path,
        output_format: OutputFormat,
        *,
        window_bytes: int,
        max_bytes: int,
        check: Callable[[], None],
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        from earth2studio.io import NetCDF4Backend, ZarrBackend

        kind: type[Output]
        if output_format == "zarr":
            name, kind = ZARR, as_backend(ZarrOutput, ZarrBackend)
        else:
            name, kind = NETCDF, as_backend(NetCDFOutput, NetCDF4Backend)
        self._writer = WriteBehind(THREADS, window_bytes, check, waiting)
        try:
            self.backend = kind(folder / name, self._writer, max_bytes, check)
        except BaseException:
            self._writer.close()
            raise
        self._folder = folder

    @staticmethod
    def prepare() -> None:
        """Import what making an output imports, which takes seconds."""
        import earth2studio.io
        import earth2studio.utils.coords  # noqa: F401
        import h5py  # noqa: F401

    def shortcoming(self) -> str | None:
        """Say why what was written is not what the class announced; None if it is."""
        lacking = self.backend.shortcomings()
        if lacking:
            return f"the workflow ended early: {'; '.join(lacking[:5])}"
        if self.backend.without_values() and not self.backend.has_values:
            return "the workflow wrote no values: everything is NaN"
        return None

    def close(self) -> None:
        """End the threads and close what is open."""
        self._writer.close()
        self.backend.discard()

"""The output of one run of a user's workflow, in the format that was requested."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from deployments.custom_workflow.backend import Output
from deployments.custom_workflow.netcdf_backend import NetCDFOutput
from deployments.custom_workflow.write_behind import WriteBehind
from deployments.custom_workflow.zarr_backend import ZarrOutput
from workflows.base import OutputFormat
from workflows.manifest import NETCDF, ZARR

WRITER_THREADS = 2


def open_output(
    folder: Path,
    output_format: OutputFormat,
    *,
    window_bytes: int,
    max_bytes: int,
    check: Callable[[], None],
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Output:
    """Create the IOBackend of a run.

    Parameters
    ----------
    folder : Path
        Receives ``results.zarr`` or ``results.nc``.
    window_bytes : int
        Bytes of Zarr chunks that may be pending.
    max_bytes : int
        Upper bound on the sum of all arrays, uncompressed.
    check : callable
        Raises if the class must stop.
    waiting : callable
        Returns a context for the time in which the class waits for the disk.
    """
    from earth2studio.io import NetCDF4Backend, ZarrBackend

    if output_format == "netcdf4":
        return as_backend(NetCDFOutput, NetCDF4Backend)(folder / NETCDF, max_bytes, check)
    writer = WriteBehind(WRITER_THREADS, window_bytes, check, waiting)
    zarr_output: Any = as_backend(ZarrOutput, ZarrBackend)
    try:
        return cast(Output, zarr_output(folder / ZARR, max_bytes, check, writer))
    except BaseException:
        writer.close()
        raise


def as_backend(output: type[Output], backend: type) -> type[Output]:
    """Return an output class that also derives from Earth2Studio's backend, for ``isinstance``.

    It is created at run time, because importing Earth2Studio takes seconds.
    """
    namespace = {"__init__": output.__init__, "__doc__": output.__doc__}
    return type(output.__name__, (output, backend), namespace)


def import_backends() -> None:
    """Import what `open_output` needs; this takes seconds."""
    import earth2studio.io
    import earth2studio.utils.coords  # noqa: F401

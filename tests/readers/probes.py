"""Programs that read a result as users do, each with one library.

A probe opens a result and yields what it reads: coordinates and the first map at first, the last
map when it is continued. In between, the harness changes the state of the server. This module needs
nothing of this project, so that ``python probes.py NAME URL VARIABLE`` works in any environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

Read = dict[str, Any]
Probe = Callable[[str, str], Iterator[Read]]
SPATIAL = ("lat", "lon", "y", "x", "latitude", "longitude")


def _read(arrays: Any, hours: Any, first: Any) -> Read:
    """Return what was opened: values of coordinates, hours since the first time, first map."""
    import numpy as np

    names = [name for name in SPATIAL if name in arrays]
    coordinates = {name: np.asarray(arrays[name][...]).tolist() for name in names}
    return {
        "coordinates": coordinates,
        "hours": np.asarray(hours).tolist(),
        "map": np.asarray(first).tolist(),
    }


def _last(values: Any) -> Read:
    import numpy as np

    return {"map": np.asarray(values).tolist()}


def _dataset(dataset: Any, variable: str) -> Iterator[Read]:
    """Read an xarray.Dataset."""
    import numpy as np

    hours = (dataset["time"].values - np.datetime64("2025-01-01T06:00")) / np.timedelta64(1, "h")
    array = dataset[variable]
    yield _read({n: dataset[n].values for n in SPATIAL if n in dataset}, hours, array[0, 0].values)
    yield _last(array[-1, -1].values)


def _group(group: Any, variable: str) -> Iterator[Read]:
    """Read a zarr.Group, or another mapping to arrays."""
    yield _read(group, group["time"][...], group[variable][0, 0])
    yield _last(group[variable][-1, -1])


def zarr_python(url: str, variable: str) -> Iterator[Read]:
    import zarr

    return _group(zarr.open_group(url, mode="r"), variable)


def zarr_obstore(url: str, variable: str) -> Iterator[Read]:
    import zarr
    from obstore.store import HTTPStore

    options: Any = {"allow_http": True}
    retry: Any = {"max_retries": 0}
    store = HTTPStore.from_url(url, client_options=options, retry_config=retry)
    return _group(
        zarr.open_group(zarr.storage.ObjectStore(store, read_only=True), mode="r"), variable
    )


def xarray_zarr(url: str, variable: str) -> Iterator[Read]:
    import xarray

    return _dataset(xarray.open_zarr(url, chunks=None), variable)


def dask(url: str, variable: str) -> Iterator[Read]:
    import xarray

    return _dataset(xarray.open_zarr(url, chunks={}), variable)


def tensorstore(url: str, variable: str) -> Iterator[Read]:
    import tensorstore as ts

    class Arrays(dict):  # type: ignore[type-arg]
        def __missing__(self, name: str) -> Any:
            store = {"driver": "http", "base_url": f"{url}/{name}/"}
            context = {"http_request_retries": {"max_retries": 1}}
            spec = {"driver": "zarr3", "kvstore": store, "context": context}
            return ts.open(spec, open=True, read=True).result()

    arrays = Arrays()
    array, hours = arrays[variable], arrays["time"].read().result()
    names = [name for name in SPATIAL if name in _names(url)]
    yield _read(
        {name: arrays[name].read().result() for name in names}, hours, array[0, 0].read().result()
    )
    yield _last(array[-1 + array.shape[0], -1 + array.shape[1]].read().result())


def _names(url: str) -> list[str]:
    from urllib.request import urlopen

    with urlopen(f"{url}/zarr.json") as answer:  # noqa: S310
        return list(json.load(answer)["consolidated_metadata"]["metadata"])


def zarrita(url: str, variable: str) -> Iterator[Read]:
    """Run zarrita in Node, with the same protocol as `main`."""
    with subprocess.Popen(
        ["node", os.environ["NODE_SCRIPT"], url, variable],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as node:
        assert node.stdin and node.stdout
        for _ in range(2):
            yield _answered(node.stdout.readline())
            node.stdin.write("\n")
            node.stdin.flush()


def _answered(line: str) -> Read:
    read: Read = json.loads(line)
    if "error" in read:
        raise RuntimeError(read["error"])
    return read


def gdal_zarr(url: str, variable: str) -> Iterator[Read]:
    return _gdal(f'ZARR:"/vsicurl/{url}"', variable)


def gdal_netcdf(url: str, variable: str) -> Iterator[Read]:
    return _gdal(f"/vsicurl/{url}", variable)


def _gdal(name: str, variable: str) -> Iterator[Read]:
    from osgeo import gdal

    gdal.UseExceptions()
    opened = gdal.OpenEx(name, gdal.OF_MULTIDIM_RASTER)
    root = opened.GetRootGroup()
    names = root.GetMDArrayNames()
    arrays = {n: root.OpenMDArray(n).ReadAsArray() for n in SPATIAL if n in names}
    array = root.OpenMDArray(variable)
    yield _read(
        arrays, root.OpenMDArray("time").ReadAsArray(), array.GetView("[0,0]").ReadAsArray()
    )
    yield _last(array.GetView("[-1,-1]").ReadAsArray())


def rasterio_zarr(url: str, variable: str) -> Iterator[Read]:
    """Read with the GDAL in rasterio's wheel, which has no multidimensional interface."""
    import rasterio

    def band(member: int, time: int) -> Any:
        with rasterio.open(f'ZARR:"/vsicurl/{url}":/{variable}:{member}:{time}') as dataset:
            assert dataset.crs is not None
            return dataset.read(1)

    yield {"map": band(0, 0).tolist()}
    yield {"map": band(1, 2).tolist()}


def h5netcdf(url: str, variable: str) -> Iterator[Read]:
    import fsspec
    import xarray

    file = fsspec.filesystem("http").open(url, block_size=1 << 16)
    return _dataset(xarray.open_dataset(file, engine="h5netcdf"), variable)


def netcdf_c(url: str, variable: str) -> Iterator[Read]:
    import xarray

    return _dataset(xarray.open_dataset(f"{url}#mode=bytes", engine="netcdf4"), variable)


def kerchunk(url: str, variable: str) -> Iterator[Read]:
    import fsspec
    import xarray
    from kerchunk.hdf import SingleHdf5ToZarr

    references = SingleHdf5ToZarr(url, inline_threshold=0).translate()
    filesystem = fsspec.filesystem(
        "reference",
        fo=references,
        remote_protocol="http",
        asynchronous=True,
        remote_options={"asynchronous": True},
    )
    import zarr

    store = zarr.storage.FsspecStore(filesystem, read_only=True, path="")
    return _dataset(
        xarray.open_zarr(store, consolidated=False, chunks=None, zarr_format=2), variable
    )


def virtualizarr_hdf(url: str, variable: str) -> Iterator[Read]:
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import HTTPStore
    from virtualizarr.parsers import HDFParser

    options: Any = {"allow_http": True}
    root = "/".join(url.split("/")[:3])
    store = HTTPStore.from_url(root, client_options=options, retry_config={"max_retries": 0})
    manifest = HDFParser()(url=url, registry=ObjectStoreRegistry({root: store}))
    return _manifest(manifest, variable)


def virtualizarr_zarr(url: str, variable: str) -> Iterator[Read]:
    """Read a folder: the parser lists a store, and HTTP servers list nothing."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr.parsers import ZarrParser

    registry = ObjectStoreRegistry({"file://": LocalStore()})
    return _manifest(ZarrParser()(url=f"file://{url}", registry=registry), variable)


def _manifest(manifest: Any, variable: str) -> Iterator[Read]:
    """Read a ManifestStore, in which nothing was loaded: all values come through references."""
    import xarray

    dataset = xarray.open_zarr(manifest, consolidated=False, chunks=None, zarr_format=3)
    return _dataset(dataset, variable)


def cdo(url: str, variable: str) -> Iterator[Read]:
    """Read a file with the Climate Data Operators, which take a URL for one of OPeNDAP."""

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(["cdo", "-s", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        return done.stdout.split()

    def values(member: int, time: int) -> list[float]:
        # The ensemble is CDO's level.
        chosen = f"-selname,{variable}", f"-seltimestep,{time + 1}", f"-sellevidx,{member + 1}"
        return [float(v) for v in run("-outputf,%.9g,1", *chosen, url)]

    run("sinfon", url)
    yield {"map": values(0, 0)}
    yield {"map": values(1, 2)}


ZARR: dict[str, Probe] = {
    "zarr-python": zarr_python,
    "zarr-python + obstore": zarr_obstore,
    "xarray": xarray_zarr,
    "xarray + dask": dask,
    "tensorstore": tensorstore,
    "zarrita": zarrita,
    "GDAL": gdal_zarr,
    "rasterio": rasterio_zarr,
}
NETCDF: dict[str, Probe] = {
    "h5netcdf": h5netcdf,
    "netCDF4": netcdf_c,
    "GDAL": gdal_netcdf,
    "kerchunk": kerchunk,
    "VirtualiZarr": virtualizarr_hdf,
}
LOCAL_ZARR: dict[str, Probe] = {"VirtualiZarr": virtualizarr_zarr}
LOCAL_NETCDF: dict[str, Probe] = {"CDO": cdo}


def main() -> None:
    """Run one probe; write each part as a line of JSON, and wait for a line before the next."""
    group, name, url, variable = sys.argv[1:]
    try:
        for read in globals()[group][name](url, variable):
            print(json.dumps(read), flush=True)
            sys.stdin.readline()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), flush=True)


if __name__ == "__main__":
    main()

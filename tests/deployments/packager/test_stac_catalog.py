"""pystac reads the static catalogue while results are added and removed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest

from deployments.packager.stac_catalog import CatalogUpdater, StaticCatalog
from tests.deployments.results.samples import PROVENANCE, make_nowcast_plan, make_plan
from tests.workflows.stac.stac_validator import validator
from workflows.base import Plan
from workflows.manifest import CHECKSUMS
from workflows.stac.collection import accompanying_collection, default_collection_id
from workflows.stac.item import CATALOG, COLLECTION, ITEM, describe_item

FCN3, NOWCAST = make_plan().workflow, make_nowcast_plan().workflow


def add(
    results: Path, plan: Plan, number: int = 0, *, synthetic: bool = False, **changes: Any
) -> Path:
    """Add a result as the Packager does; return its folder."""
    execution_id = f"exec_{1767000000 + number}_{number:08x}"
    folder = results / plan.workflow / execution_id
    folder.mkdir(parents=True)
    zarr = plan.output_format == "zarr"
    if zarr:
        (folder / "results.zarr").mkdir()
    others = ("preview.png", "metadata.json", *(() if zarr else ("results.nc",)))
    for name in others:
        (folder / name).write_text(name)
    model = PROVENANCE.model.model_copy(update={"synthetic": synthetic})
    created = datetime(2026, 1, 1, 0, number // 60 % 60, number % 60, tzinfo=UTC)
    provenance = PROVENANCE.model_copy(update={"model": model, "created": created})
    item = describe_item(
        plan,
        execution_id,
        provenance,
        {
            **{name: (len(name), "ab" * 32) for name in others},
            **({"results.zarr": (9, None)} if zarr else {}),
        },
        collection_id=default_collection_id(plan.workflow),
        base_href=".",
    )
    (folder / COLLECTION).write_text(json.dumps(accompanying_collection(item)))
    (folder / ".item").write_text(json.dumps(item | changes))
    (folder / ".item").rename(folder / ITEM)
    (folder / CHECKSUMS).touch()
    return folder


def items_in(results: Path) -> list[str]:
    """Return the folders of all items that a reader finds from the root."""
    catalog = pystac.Catalog.from_file(results / CATALOG)
    return sorted(
        Path(item.get_self_href()).parent.name for item in catalog.get_items(recursive=True)
    )


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_reader_finds_every_item_and_file(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path / "results")
    results = tmp_path / "results"
    folders = [
        add(results, make_plan(), 1),
        add(results, make_plan(output_format="netcdf4"), 2),
        add(results, make_plan(time_layout="lead_time"), 3, synthetic=True),
        add(results, make_nowcast_plan(), 4),
        add(results, make_nowcast_plan(output_format="netcdf4"), 5),
    ]
    for workflow in (FCN3, NOWCAST):
        catalog.update(workflow)
    # Links are relative and work in any folder.
    moved = results.rename(tmp_path / "moved")
    root = pystac.Catalog.from_file(moved / CATALOG)
    assert not [link for link in root.links if link.rel == "self" and "results" in link.href]
    assert root.validate(validator())
    assert {child.id for child in root.get_children()} == {
        default_collection_id(workflow) for workflow in (FCN3, NOWCAST)
    }
    found = []
    for collection in root.get_children():
        assert isinstance(collection, pystac.Collection)
        collection.validate(validator())
        assert (collection.get_parent(), collection.get_root()) == (root, root)
        for item in collection.get_items():
            item.validate(validator())
            assert (item.get_parent(), item.get_root()) == (collection, root)
            assert item.get_collection().id == item.collection_id == collection.id
            found.append(Path(item.get_self_href()).parent.name)
            for asset in item.get_assets().values():
                assert Path(asset.get_absolute_href()).exists()
    assert sorted(found) == [folder.name for folder in folders]


@pytest.mark.parametrize("plan", [make_plan(), make_nowcast_plan()], ids=["fcn3", "nowcast"])
def test_links_of_an_item_resolve_in_its_folder_alone(tmp_path: Path, plan: Plan) -> None:
    folder = add(tmp_path / "results", plan).rename(tmp_path / "downloaded")
    item = pystac.Item.from_file(folder / ITEM)
    collection = item.get_collection()
    collection.validate(validator())
    assert {each.self_href for each in (item.get_root(), item.get_parent(), collection)} == {
        str(folder / COLLECTION)
    }
    assert collection.id == item.collection_id
    assert [each.id for each in collection.get_items()] == [item.id]
    interval = [item.common_metadata.start_datetime, item.common_metadata.end_datetime]
    assert collection.extent.temporal.intervals == [interval]
    for document in (ITEM, COLLECTION):
        for link in read(folder / document)["links"]:
            assert (folder / link["href"]).is_file()


def test_extent_covers_all_items_in_time(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    late = make_plan(start_time=datetime(2025, 3, 1, tzinfo=UTC), n_steps=4)
    early = make_plan(start_time=datetime(2024, 12, 1, tzinfo=UTC))
    add(tmp_path, late, 1)
    removed = add(tmp_path, early, 2)
    catalog.update(FCN3)
    document = read(tmp_path / FCN3 / COLLECTION)
    interval = document["extent"]["temporal"]["interval"]
    assert interval == [["2024-12-01T00:00:00Z", "2025-03-02T00:00:00Z"]]
    assert document["extent"]["spatial"]["bbox"] == [[-180, -90, 180, 90]]
    shutil.rmtree(removed)
    catalog.update(FCN3)
    (interval,) = read(tmp_path / FCN3 / COLLECTION)["extent"]["temporal"]["interval"]
    assert interval[0] == "2025-03-01T00:00:00Z"


def test_extent_covers_all_items_in_space(tmp_path: Path) -> None:
    add(tmp_path, make_plan(), 1, bbox=[-120.0, 20.0, -60.0, 50.0])
    add(tmp_path, make_plan(), 2, bbox=[-130.0, 25.0, -70.0, 55.0])
    catalog = StaticCatalog(tmp_path)
    catalog.update(FCN3)
    spatial = read(tmp_path / FCN3 / COLLECTION)["extent"]["spatial"]
    assert spatial["bbox"] == [[-130, 20, -60, 55]]
    add(tmp_path, make_plan(), 3, bbox=[170.0, 25.0, -70.0, 55.0])
    catalog.update(FCN3)
    spatial = read(tmp_path / FCN3 / COLLECTION)["extent"]["spatial"]
    assert spatial["bbox"] == [[-180, 20, 180, 55]]


def test_collection_of_both_formats_names_neither(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    add(tmp_path, make_plan(), 1)
    catalog.update(FCN3)
    data = read(tmp_path / FCN3 / COLLECTION)["item_assets"]["data"]
    assert data["type"] == "application/vnd.zarr; version=3"
    add(tmp_path, make_plan(output_format="netcdf4"), 2)
    catalog.update(FCN3)
    data = read(tmp_path / FCN3 / COLLECTION)["item_assets"]["data"]
    assert set(data) == {"roles", "description"}
    pystac.Collection.from_file(tmp_path / FCN3 / COLLECTION).validate(validator())


def test_collection_says_that_some_items_are_synthetic(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    add(tmp_path, make_plan(), 2)
    catalog.update(FCN3)
    assert "ynthetic" not in read(tmp_path / FCN3 / COLLECTION)["title"]
    add(tmp_path, make_plan(), 1, synthetic=True)
    catalog.update(FCN3)
    assert "some synthetic" in read(tmp_path / FCN3 / COLLECTION)["title"]


def test_removed_results_disappear(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    first, second = add(tmp_path, make_plan(), 1), add(tmp_path, make_plan(), 2)
    nowcast = add(tmp_path, make_nowcast_plan(), 3)
    for workflow in (FCN3, NOWCAST):
        catalog.update(workflow)
    assert items_in(tmp_path) == [first.name, second.name, nowcast.name]
    # As `ResultsStore.purge` does.
    second.rename(tmp_path / ".partial" / f"{second.name}.purged")
    catalog.update(FCN3)
    assert items_in(tmp_path) == [first.name, nowcast.name]
    shutil.rmtree(first)
    catalog.update(FCN3)
    assert items_in(tmp_path) == [nowcast.name]
    assert not (tmp_path / FCN3 / COLLECTION).exists()
    children = [link for link in read(tmp_path / CATALOG)["links"] if link["rel"] == "child"]
    assert [link["title"] for link in children] == [NOWCAST]


def test_folders_without_an_item_are_ignored(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    (tmp_path / "custom" / "exec_1_00000000").mkdir(parents=True)
    (tmp_path / "custom" / "a-file").write_text("")
    for workflow in ("custom", "never-run"):
        catalog.update(workflow)
    assert items_in(tmp_path) == []
    assert not (tmp_path / "custom" / COLLECTION).exists()
    assert not (tmp_path / "never-run").exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"collection": 3}', json.dumps({"collection": "another"})],
    ids=["empty", "list", "no item", "no name", "of another collection"],
)
def test_broken_item_is_left_out_and_logged_once(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = StaticCatalog(tmp_path)
    good, broken = add(tmp_path, make_plan(), 1), add(tmp_path, make_plan(), 2)
    content_before = (broken / ITEM).read_text()
    (broken / ITEM).write_text(content)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        catalog.update(FCN3)
        catalog.update(FCN3)
    assert [record.execution_id for record in caplog.records] == [broken.name]
    assert items_in(tmp_path) == [good.name]
    (broken / ITEM).write_text(content_before)
    catalog.update(FCN3)
    assert items_in(tmp_path) == [good.name, broken.name]


def test_item_without_its_files_is_left_out(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    good, incomplete = add(tmp_path, make_plan(), 1), add(tmp_path, make_plan(), 2)
    catalog.update(FCN3)
    (incomplete / "results.zarr").rmdir()
    catalog.update(FCN3)
    assert items_in(tmp_path) == [good.name]


def test_broken_items_alone_make_no_collection(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    (add(tmp_path, make_plan(), 1) / ITEM).write_text("{")
    catalog.update(FCN3)
    assert items_in(tmp_path) == []
    assert not (tmp_path / FCN3 / COLLECTION).exists()


def test_incomplete_result_is_left_out(tmp_path: Path) -> None:
    complete, failed = add(tmp_path, make_plan(), 1), add(tmp_path, make_plan(), 2)
    (failed / CHECKSUMS).unlink()
    StaticCatalog(tmp_path).update(FCN3)
    assert items_in_links(tmp_path) == [complete.name]


def test_unchanged_items_are_not_read_again(tmp_path: Path) -> None:
    catalog = StaticCatalog(tmp_path)
    old, newest = add(tmp_path, make_plan(), 1), add(tmp_path, make_plan(), 2)
    catalog.update(FCN3)
    path = old / ITEM
    status = path.stat()
    path.write_text(" " * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    catalog.update(FCN3)
    assert items_in_links(tmp_path) == [old.name, newest.name]
    # A new catalogue reads it.
    StaticCatalog(tmp_path).update(FCN3)
    assert items_in_links(tmp_path) == [newest.name]


def items_in_links(results: Path) -> list[str]:
    links = read(results / FCN3 / COLLECTION)["links"]
    return [link["href"].split("/")[1] for link in links if link["rel"] == "item"]


def test_unchanged_documents_are_not_written_again(tmp_path: Path) -> None:
    add(tmp_path, make_plan(), 1)
    files = [tmp_path / CATALOG, tmp_path / FCN3 / COLLECTION]
    StaticCatalog(tmp_path).update(FCN3)
    before = [file.stat().st_ino for file in files]
    StaticCatalog(tmp_path).update(FCN3)
    assert [file.stat().st_ino for file in files] == before
    assert [path.name for path in (tmp_path / ".partial").iterdir()] == ["catalog.lock"]


def add_ten(results: Path, first: int) -> None:
    catalog = StaticCatalog(results)
    for number in range(first, first + 10):
        add(results, make_plan(), number)
        catalog.update(FCN3)


def test_processes_may_update_concurrently(tmp_path: Path) -> None:
    add(tmp_path, make_plan(), 0)
    StaticCatalog(tmp_path).update(FCN3)
    context = multiprocessing.get_context("spawn")
    adding = [context.Process(target=add_ten, args=(tmp_path, n)) for n in (100, 200, 300)]
    for process in adding:
        process.start()
    n_before = 0
    while any(process.is_alive() for process in adding):
        # The document is complete at any time, and no item gets lost.
        n_items = len(items_in_links(tmp_path))
        assert n_items >= n_before
        n_before = n_items
    assert [process.exitcode for process in adding] == [0, 0, 0]
    assert len(items_in_links(tmp_path)) == 31


class CountingCatalog(StaticCatalog):
    """Counts updates; the first one fails."""

    def __init__(self, results_dir: Path) -> None:
        super().__init__(results_dir)
        self.updates: list[str] = []
        self.updated = threading.Semaphore(0)

    def update(self, workflow: str) -> None:
        self.updates.append(workflow)
        self.updated.release()
        if len(self.updates) == 1:
            raise OSError("disk full")


def test_updater_combines_changes_and_survives_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = CountingCatalog(tmp_path)
    updater = CatalogUpdater(catalog, delay_s=0.3)
    for workflow in (FCN3, FCN3, NOWCAST, FCN3):
        updater.schedule(workflow)
    for _ in range(2):
        assert catalog.updated.acquire(timeout=20)
    updater.schedule(FCN3)
    assert catalog.updated.acquire(timeout=20)
    assert catalog.updates == [FCN3, NOWCAST, FCN3]
    assert "is not up to date" in caplog.text

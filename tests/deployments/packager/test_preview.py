"""The preview is a readable map with the right colours in the right places."""

import io

import numpy as np
import pytest
from PIL import Image

from deployments.packager.basemap import COAST_LINE, regional_basemap
from deployments.packager.preview import MISSING_RGB, render, scale
from workflows.grids import LambertGrid

LEFT, TOP = 46, 40  # margins of the map


def open_image(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


# The tests read pixels at sea or inland, away from the graticule.
def colours(field, variable="t2m"):
    """Return the pixels of the map, RGB."""
    pixels = np.asarray(open_image(render(field, variable, "title")).convert("RGB")).astype(int)
    width = 720 if field.shape[1] < 720 else field.shape[1]
    return pixels[TOP : TOP + width // 2, LEFT : LEFT + width]


def waves(n_lat, n_lon, dtype=np.float32):
    lat = np.linspace(90, -90, n_lat)[:, None]
    lon = np.linspace(-180, 180, n_lon, endpoint=False)[None]
    return (280 + 20 * np.cos(np.radians(lat)) + 5 * np.sin(np.radians(3 * lon))).astype(dtype)


@pytest.mark.parametrize("grid", [(8, 16), (1, 1), (181, 360), (721, 1440), (720, 1440), (90, 60)])
def test_preview_is_a_png_of_readable_size(grid):
    image = open_image(render(waves(*grid), "t2m", "2 m temperature, member 0 (synthetic)"))
    assert image.format == "PNG"
    assert 720 < image.width <= 1600
    assert 1.5 < image.width / image.height < 2.1


def test_preview_of_a_full_field_is_small():
    assert len(render(waves(721, 1440), "t2m", "t")) < 600_000


def test_north_is_up_and_west_is_left():
    field = np.zeros((8, 16), dtype=np.float32)
    field[0, 0] = 1.0
    picture = colours(field)
    hot, cold = picture[5, 5], picture[200, 50]
    assert hot[0] > hot[2] + 50, "the first value is not red in the upper left corner"
    assert cold[2] > cold[0] + 50


def test_missing_values_are_grey_and_change_nothing_else():
    field, with_gap = waves(181, 360), waves(181, 360)
    with_gap[20:40, 100:160] = np.nan
    before, after = colours(field), colours(with_gap)
    assert after[76, 275].tolist() == list(MISSING_RGB)
    far = (slice(300, 355), slice(5, 700))
    assert np.abs(before[far] - after[far]).max() < 25


def test_infinity_has_the_colour_at_the_end_of_the_scale():
    field = waves(181, 360)
    field[20:40, 100:160], field[100:120, 100:160] = np.inf, -np.inf
    picture = colours(field)
    assert picture[76, 275].tolist() == [165, 0, 38]
    assert picture[220, 275].tolist() == [49, 54, 149]


@pytest.mark.parametrize("value", [0.0, 273.15, -5.0, 101_325.0, 1e-9, 1e30, -3e38, np.nan, np.inf])
@pytest.mark.parametrize("variable", ["t2m", "u10m", "tcwv", "something_else"])
def test_constant_fields_are_drawn(value, variable):
    picture = colours(np.full((8, 16), value, dtype=np.float32), variable)
    corner = picture[2:10, 2:10].reshape(-1, 3)
    assert (corner == corner[0]).all()
    assert (corner[0].tolist() == list(MISSING_RGB)) == bool(np.isnan(value))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32])
def test_number_type_does_not_change_the_map(dtype):
    field = np.rint(waves(31, 60)).astype(dtype)
    assert np.array_equal(colours(field), colours(field.astype(np.float32)))


def test_calm_is_pale_and_opposite_winds_differ():
    field = np.zeros((8, 16), dtype=np.float32)
    field[:, :5], field[:, 10:] = -10.0, 10.0
    picture = colours(field, "u10m")
    west, calm, east = picture[130, 65], picture[130, 350], picture[130, 650]
    assert calm.min() > 225
    assert west[2] > west[0] and east[0] > east[2]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (226.1, 309.2), (97_037.0, 104_306.0), (-3, 17), (1e-7, 3e-6)]
)
def test_ticks_are_round_and_within_the_scale(low, high):
    values = np.linspace(low, high, 10_000).reshape(100, 100)
    ticks, lowest, highest = scale(values)
    assert lowest <= np.percentile(values, 1) and highest >= np.percentile(values, 99)
    assert highest - lowest < 1.5 * (high - low)
    assert 3 <= len(ticks) <= 9
    assert lowest - 1e-9 <= ticks[0] and ticks[-1] <= highest * (1 + 1e-9) + 1e-12
    step = ticks[1] - ticks[0]
    digits = step / 10.0 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(digits - n) for n in (1, 2, 2.5, 5)) < 1e-6
    np.testing.assert_allclose(np.array(ticks) / step, np.rint(np.array(ticks) / step), atol=1e-6)


def test_wind_scale_is_centred_and_moisture_scale_starts_at_zero():
    values = np.linspace(-3.0, 17.0, 100).reshape(10, 10)
    _, low, high = scale(values, symmetric=True)
    assert low == -high
    assert scale(values + 5, positive=True)[1] == 0


def test_title_and_unit_are_drawn():
    field = waves(31, 60)
    plain = np.asarray(open_image(render(field, "t2m", "")).convert("L"))
    titled = np.asarray(open_image(render(field, "t2m", "Temperature")).convert("L"))
    assert (plain[:TOP] == 255).mean() > 0.95 and (titled[:TOP] < 100).sum() > 100
    np.testing.assert_array_equal(plain[TOP:], titled[TOP:])
    other = np.asarray(open_image(render(field, "unknown", "")).convert("L"))
    right_of_bar = (slice(-50, -25), slice(-100, None))
    assert (plain[right_of_bar] < 100).any() and not (other[right_of_bar] < 100).any()


def test_regional_map_has_north_up_and_missing_values_in_place():
    grid = LambertGrid()
    north = grid.latitudes()
    far_north_west = (north > 45) & (grid.longitudes() < -122)
    field = np.where(far_north_west, np.nan, north).astype(np.float32)
    picture = np.asarray(open_image(render(field, "t2m", "title", grid)).convert("RGB")).astype(int)
    inside = picture[TOP : TOP + grid.n_y, LEFT : LEFT + grid.n_x]
    assert inside[2, 2].tolist() == list(MISSING_RGB)
    warm, cold = inside[20, 500], inside[-20, 500]
    assert warm[0] > warm[2] + 50
    assert cold[2] > cold[0] + 50


def test_regional_map_has_coasts_where_they_are():
    grid = LambertGrid()
    lines = regional_basemap(grid).lines

    def has_coast(north: float, east: float) -> bool:
        y, x = grid.project(np.array(north), np.array(east))
        row = int((grid.y()[-1] - y) / grid.spacing_m)
        column = int((x - grid.first_x_m) / grid.spacing_m)
        return bool((lines[row - 15 : row + 15, column - 15 : column + 15] == COAST_LINE).any())

    assert has_coast(25.2, -80.7), "Florida"
    assert not has_coast(38.5, -98.5), "Kansas"


@pytest.mark.parametrize("size", [{"n_y": 2, "n_x": 2}, {"n_y": 16, "n_x": 24}])
def test_small_regions_are_drawn(size):
    grid = LambertGrid(**size, spacing_m=100_000.0)
    image = open_image(render(np.ones(grid.shape, np.float32), "abi01c", "title", grid))
    assert image.width > 720


def test_a_long_title_fits_above_a_narrow_map() -> None:
    title = (
        "Air temperature at 2 m, member 0 of 1, valid 2025-01-01 12:00 UTC, 12 h after 2025-01-01 "
        "00:00 (synthetic)"
    )
    image = np.asarray(open_image(render(waves(51, 100), "t2m", title)).convert("L"))
    shorter = np.asarray(open_image(render(waves(51, 100), "t2m", title[:-1])).convert("L"))
    changed = np.flatnonzero((image[:40] != shorter[:40]).any(axis=0))
    assert changed.size and changed.max() < image.shape[1] - 10

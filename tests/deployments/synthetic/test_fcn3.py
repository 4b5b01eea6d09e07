"""The synthetic FCN3 and its data source: interface, reproducibility and plausible weather."""

import asyncio
import hashlib
import subprocess
import sys
from collections import OrderedDict
from datetime import datetime

import numpy as np
import pytest
import xarray as xr

from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS, load_fcn3, load_ifs
from workflows.fcn3 import VARIABLES

START = np.datetime64("2025-01-01T00", "ns")
GRIDS = [(8, 16), (31, 60), (91, 180)]


def analysis(n_lat=8, n_lon=16, variables=VARIABLES, time=START) -> xr.DataArray:
    return SyntheticIFS(n_lat=n_lat, n_lon=n_lon)(np.array([time]), list(variables))


def initial(n_lat=8, n_lon=16):
    found = analysis(n_lat, n_lon)
    coords = OrderedDict(
        time=found.time.values,
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=found["variable"].values,
        lat=found.lat.values,
        lon=found.lon.values,
    )
    return found.values[:, None], coords


def run(model, seed, n_steps, state):
    x, coords = state
    model.set_rng(seed=seed, reset=True)
    steps = model.create_iterator(x, coords)
    return np.stack([next(steps)[0][0, 0].copy() for _ in range(n_steps + 1)])


def weighted_rms(field, latitudes):
    weight = np.cos(np.radians(latitudes))[:, None]
    return float(np.sqrt((weight * field**2).mean() / weight.mean()))


class TestSyntheticIFS:
    def test_has_the_interface_of_a_data_source(self):
        source = load_ifs(n_lat=9, n_lon=12)
        times = [datetime(2025, 1, 1), datetime(2025, 1, 1, 6)]
        found = source(times, ["t2m", "z500"])
        assert found.dims == ("time", "variable", "lat", "lon")
        assert found.shape == (2, 2, 9, 12)
        assert found.dtype == np.float32
        assert found.lat.values[[0, -1]].tolist() == [90.0, -90.0]
        assert found.lon.values[[0, -1]].tolist() == [0.0, 330.0]
        assert found["variable"].values.tolist() == ["t2m", "z500"]
        assert found.time.values.tolist() == np.array(times, "datetime64[ns]").tolist()
        assert source.synthetic

    def test_accepts_single_values_and_can_be_awaited(self):
        source = SyntheticIFS(n_lat=8, n_lon=16)
        one = source(datetime(2025, 1, 1), "msl")
        assert one.shape == (1, 1, 8, 16)
        xr.testing.assert_identical(one, asyncio.run(source.fetch(START, np.array(["msl"]))))

    def test_a_field_depends_only_on_time_and_name(self):
        single = analysis(variables=["q700"], time=START + np.timedelta64(6, "h"))
        together = SyntheticIFS(n_lat=8, n_lon=16)(
            [START, START + np.timedelta64(6, "h")], ["t2m", "q700", "u10m"]
        )
        np.testing.assert_array_equal(together.values[1, 1], single.values[0, 0])
        assert not np.array_equal(together.values[0, 1], single.values[0, 0])

    def test_grids_show_the_same_world(self):
        fine = analysis(91, 180, ["t2m", "u500", "tcwv"]).values[0]
        coarse = analysis(31, 60, ["t2m", "u500", "tcwv"]).values[0]
        # The land mask is sampled at discrete points; everything else is smooth.
        np.testing.assert_allclose(coarse, fine[:, ::3, ::3], rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("name", ["sst", "x500", "z0", "z5000", "u", ""])
    def test_an_unknown_variable_is_refused(self, name):
        with pytest.raises(ValueError, match="no synthetic field"):
            analysis(variables=[name])

    def test_magnitudes_are_plausible(self):
        bounds = {
            "u10m": (-35, 35),
            "v10m": (-35, 35),
            "u100m": (-45, 45),
            "v100m": (-45, 45),
            "t2m": (200, 325),
            "msl": (93_000, 107_000),
            "tcwv": (0, 85),
            "z500": (44_000, 60_500),
            "z1000": (-5_000, 5_000),
            "z50": (180_000, 210_000),
            "t50": (185, 245),
            "t850": (225, 310),
            "u250": (-90, 120),
            "v500": (-70, 70),
            "q1000": (0, 0.03),
            "q50": (0, 2e-5),
        }
        for month in (1, 4, 7, 10):
            found = analysis(91, 180, bounds, np.datetime64(f"2025-{month:02}-01", "ns"))
            for name, field in zip(bounds, found.values[0], strict=True):
                low, high = bounds[name]
                assert low < field.min() < field.max() < high, (name, month)

    def test_every_variable_is_finite_and_varies(self):
        found = analysis(31, 60)
        assert np.isfinite(found.values).all()
        assert (found.values.std(axis=-1).max(axis=-1) > 0).all()

    def test_heights_rise_with_altitude_everywhere(self):
        names = [f"z{level}" for level in (1000, 850, 500, 250, 100, 50)]
        found = analysis(31, 60, names)
        assert (np.diff(found.values[0], axis=0) > 0).all()

    def test_seasons_jets_and_storm_tracks_are_realistic(self):
        winter = analysis(91, 180, ["t2m", "msl", "u250", "tcwv"]).values[0]
        summer = analysis(91, 180, ["t2m"], np.datetime64("2025-07-01", "ns")).values[0, 0]
        lat = np.linspace(90, -90, 91)
        t2m, msl, jet, moisture = winter.mean(axis=-1)
        assert t2m[45] > 295 and t2m[0] < 260 and t2m[-1] < 270
        assert summer.mean(axis=-1)[:20].mean() > t2m[:20].mean() + 8
        assert 25 < lat[:45][jet[:45].argmax()] < 50
        assert moisture[45] > 5 * moisture[10]
        # Lows and highs of several wavenumbers along the storm track.
        storms = np.abs(np.fft.rfft(winter[1, 15:25], axis=-1))[:, 1:]
        assert (storms[:, :12].mean(axis=0) > 0.1 * storms.max()).sum() >= 4

    def test_cyclones_rotate_in_the_right_direction(self):
        z, u, v = analysis(91, 180, ["z500", "u500", "v500"]).values[0].astype(float)
        for rows in (slice(15, 30), slice(61, 76)):
            phi = np.radians(np.linspace(90, -90, 91)[rows])[:, None]
            f = 2 * 7.292e-5 * np.sin(phi)
            east = 6.371e6 * np.cos(phi) * np.radians(2.0)
            geostrophic = (np.roll(z, -1, -1) - np.roll(z, 1, -1))[rows] / (2 * east) / f
            assert np.corrcoef(geostrophic.ravel(), v[rows].ravel())[0, 1] > 0.9
            low = z[rows] - z[rows].mean(axis=-1, keepdims=True) < 0
            vorticity = (np.roll(v, -1, -1) - np.roll(v, 1, -1))[rows] / (2 * east)
            vorticity -= np.gradient(u, -np.radians(2.0) * 6.371e6, axis=0)[rows]
            sense = np.sign(np.sin(phi))
            assert (sense * vorticity)[low].mean() > (sense * vorticity)[~low].mean()


class TestSyntheticFCN3:
    def test_the_first_step_is_the_input(self):
        x, coords = initial()
        kept = x.copy()
        steps = load_fcn3("cuda", n_lat=8, n_lon=16).create_iterator(x, coords)
        state, state_coords = next(steps)
        assert np.array_equal(state, kept)
        assert state_coords["lead_time"].tolist() == coords["lead_time"].tolist()
        for _ in range(3):
            next(steps)
        assert np.array_equal(x, kept), "the input was overwritten"

    def test_coordinates_follow_the_steps(self):
        x, coords = initial()
        model = SyntheticFCN3(n_lat=8, n_lon=16)
        steps = model.create_iterator(x, coords)
        hours = [next(steps)[1]["lead_time"] / np.timedelta64(1, "h") for _ in range(4)]
        assert np.array(hours).tolist() == [[0.0], [6.0], [12.0], [18.0]]
        assert coords["lead_time"] == np.timedelta64(0, "h")
        after = model.output_coords(coords)
        assert list(after) == list(coords)
        assert after["lead_time"] == np.timedelta64(6, "h")
        assert tuple(model.input_coords()["variable"]) == VARIABLES
        assert list(model.input_coords()) == [
            *("batch", "time", "lead_time", "variable", "lat", "lon")
        ]

    @pytest.mark.parametrize("name", ["variable", "lat", "lon"])
    def test_foreign_coordinates_are_refused(self, name):
        x, coords = initial()
        coords[name] = coords[name][::-1]
        with pytest.raises(ValueError, match=name):
            SyntheticFCN3(n_lat=8, n_lon=16).create_iterator(x, coords)

    def test_a_state_that_does_not_fit_is_refused(self):
        x, coords = initial()
        with pytest.raises(ValueError, match="does not fit"):
            SyntheticFCN3(n_lat=8, n_lon=16).create_iterator(x[..., :-1], coords)

    def test_is_marked_as_synthetic(self):
        model = SyntheticFCN3()
        assert model.synthetic and model.numpy_native
        assert "synthetic" in model.weights
        assert model.to("cuda:0") is model

    @pytest.mark.parametrize("grid", GRIDS)
    def test_the_same_seed_yields_the_same_arrays(self, grid):
        state = initial(*grid)
        alone = run(SyntheticFCN3(n_lat=grid[0], n_lon=grid[1]), 7, 5, state)
        used = SyntheticFCN3(n_lat=grid[0], n_lon=grid[1])
        run(used, 8, 3, state)
        np.random.seed(1)
        np.testing.assert_array_equal(run(used, 7, 5, state), alone)

    def test_interleaved_members_do_not_affect_each_other(self):
        x, coords = initial()
        model = SyntheticFCN3(n_lat=8, n_lon=16)
        iterators, seeds = [], (3, 4, 5)
        for seed in seeds:
            model.set_rng(seed=seed)
            iterators.append(model.create_iterator(x, coords))
        steps = [[], [], []]
        for member in (0, 1, 1, 2, 0, 2, 2, 1, 0):
            steps[member].append(next(iterators[member])[0][0, 0].copy())
        for seed, fields in zip(seeds, steps, strict=True):
            alone = run(SyntheticFCN3(n_lat=8, n_lon=16), seed, 2, (x, coords))
            np.testing.assert_array_equal(np.stack(fields), alone)

    def test_another_process_yields_the_same_arrays(self):
        code = (
            "import hashlib, sys; sys.path.insert(0, '.');"
            "from tests.deployments.synthetic.test_fcn3 import *;"
            "print(hashlib.sha256("
            "run(SyntheticFCN3(n_lat=8, n_lon=16), 11, 2, initial()).tobytes()).hexdigest())"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        steps = run(SyntheticFCN3(n_lat=8, n_lon=16), 11, 2, initial())
        assert other.stdout.strip() == hashlib.sha256(steps.tobytes()).hexdigest(), other.stderr

    def test_members_diverge_gradually_up_to_a_bound(self):
        state = initial(31, 60)
        model = SyntheticFCN3(n_lat=31, n_lon=60)
        one, other = run(model, 1, 120, state), run(model, 2, 120, state)
        lat = np.linspace(90, -90, 31)
        expected = {"t2m": (0.01, 8), "u10m": (0.01, 8), "msl": (2, 2_000), "tcwv": (0.005, 15)}
        for name, (least, most) in expected.items():
            index = VARIABLES.index(name)
            spread = [
                weighted_rms(one[n, index] - other[n, index], lat) for n in (0, 1, 8, 40, 120)
            ]
            assert spread[0] == 0
            assert least < spread[1] < spread[2] < spread[3] < most, (name, spread)
            assert spread[4] < 2.5 * spread[3], (name, spread)

    def test_long_forecasts_stay_plausible(self):
        state = initial(31, 60)
        last = run(SyntheticFCN3(n_lat=31, n_lon=60), 5, 200, state)[-1]
        names = list(VARIABLES)
        assert np.isfinite(last).all()
        moisture = [n for n, name in enumerate(names) if name[0] == "q" or name == "tcwv"]
        assert len(moisture) == 14 and (last[moisture] >= 0).all()
        for name, low, high in (
            ("t2m", 195, 330),
            ("msl", 90_000, 110_000),
            ("z500", 43_000, 62_000),
            ("u10m", -50, 50),
            ("q850", 0, 0.05),
        ):
            field = last[names.index(name)]
            assert low < field.min() < field.max() < high, name

    def test_negative_moisture_is_clipped(self):
        x, coords = initial()
        index = VARIABLES.index("q500")
        x[..., index, :, :] -= x[..., index, :, :].mean()
        step = SyntheticFCN3(n_lat=8, n_lon=16)(x, coords)[0]
        assert x[..., index, :, :].min() < 0 <= step[..., index, :, :].min()

    def test_weather_drifts_eastward_over_fixed_ground(self):
        x, coords = initial(91, 180)
        after = run(SyntheticFCN3(n_lat=91, n_lon=180), 1, 4, (x, coords))[4]
        z500, t2m = VARIABLES.index("z500"), VARIABLES.index("t2m")
        expected = np.roll(x[0, 0, z500], 5, axis=-1)  # a day: 10 degrees, 2 degrees a cell
        scale = (x[0, 0, z500] - x[0, 0, z500].mean(-1, keepdims=True)).std()
        assert np.abs(after[z500] - expected).std() < 0.25 * scale
        # Greenland stays the coldest place of its latitude for a day.
        row, greenland, drifted = 9, 159, 164
        coldest = x[0, 0, t2m, row].argmin()
        assert abs(int(after[t2m, row].argmin()) - int(coldest)) <= 2
        assert abs(int(coldest) - greenland) < abs(int(coldest) - drifted)

    def test_a_forecast_approaches_the_analysis_of_its_time(self):
        x, coords = initial(31, 60)
        later = analysis(31, 60, time=START + np.timedelta64(6, "h")).values[0]
        step = run(SyntheticFCN3(n_lat=31, n_lon=60), 1, 4, (x, coords))
        lat = np.linspace(90, -90, 31)
        index = VARIABLES.index("t2m")
        error = weighted_rms(step[1, index] - later[index], lat)
        assert error < 0.5 * weighted_rms(x[0, 0, index] - later[index], lat)

    @pytest.mark.parametrize("lead", [(1,), (2, 1)])
    def test_leading_dimensions_are_kept(self, lead):
        x, coords = initial()
        x = np.broadcast_to(x, (*lead, *x.shape[1:])) if len(lead) == 1 else x
        if len(lead) == 2:
            x = np.stack([x, x])
            coords = OrderedDict(batch=np.arange(2), **coords)
        state, after = SyntheticFCN3(n_lat=8, n_lon=16)(x, coords)
        assert state.shape == x.shape and state.dtype == np.float32
        assert list(after) == list(coords)
        if len(lead) == 2:
            first = run(SyntheticFCN3(n_lat=8, n_lon=16), 333, 1, initial())[1]
            np.testing.assert_array_equal(state[0, 0, 0], first)
            assert not np.array_equal(state[0], state[1]), "members of a batch must differ"


def test_importing_does_not_import_torch_or_earth2studio():
    code = (
        "import sys, deployments.synthetic.fcn3, deployments.packager.preview;"
        "print([m for m in ('torch', 'earth2studio', 'ray', 'matplotlib') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr

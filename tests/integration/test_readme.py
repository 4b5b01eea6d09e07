"""The README's Python request, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from tests.integration.serving import LIMIT_S, Server

pytestmark = pytest.mark.ray

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_downloads_a_forecast(shared_server: Server, tmp_path: Path) -> None:
    example = re.search(r"```python\n(import json.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    program = example[1].replace("http://127.0.0.1:8000", shared_server.base_url)
    assert shared_server.base_url in program
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(tmp_path / "results.nc") as dataset:
        assert dataset.sizes["ensemble"] == 2
        assert dataset.sizes["time"] == 5

"""Fixtures for tests of FCN3."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.synthetic.fcn3 import SyntheticFCN3
from tests.deployments.models.fcn3_replicas import Packager, synthetic_fcn3, write_analysis


@pytest.fixture
def model() -> SyntheticFCN3:
    return synthetic_fcn3()


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """File with initial conditions."""
    path = tmp_path / "ifs.npy"
    write_analysis(path)
    return path


@pytest.fixture
def packager() -> Packager:
    return Packager()

"""STAC collections: valid, named after their workflow."""

from __future__ import annotations

import json
import re

import pystac
import pytest

from tests.workflows.stac.items import EVERY_PLAN, REAL, SYNTHETIC
from tests.workflows.stac.stac_validator import validator
from workflows.base import Plan
from workflows.dataset import Provenance
from workflows.stac.collection import default_collection_id, describe_collection


@pytest.mark.parametrize("provenance", [SYNTHETIC, REAL], ids=["synthetic", "real"])
@EVERY_PLAN
def test_a_collection_is_valid(plan: Plan, provenance: Provenance) -> None:
    document = describe_collection(plan, provenance, "a-collection")
    assert pystac.Collection.from_dict(json.loads(json.dumps(document))).validate(validator())
    assert document["id"] == "a-collection"


def test_every_workflow_has_its_own_collection_id() -> None:
    names = ["foundry_fcn3_workflow", "Mine", "_mine", "mine.too"]
    ids = [default_collection_id(name) for name in names]
    assert ids[0] == "earth2serve-foundry-fcn3-workflow"
    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", each) for each in ids)

"""Settings as the tests parse them."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.settings.parsing import SettingsError, parse_settings
from serve_app.settings.settings import Settings

FCN3 = "foundry_fcn3_workflow"
STORMSCOPE = "foundry_fcn3_stormscope_goes_workflow"
IN_BLOB = "az://contosoweather/forecasts/nightly"
PASSWORD = "hunter2"
SECRET_URL = f"postgresql+psycopg://user:{PASSWORD}@db.example/earth2"


def parse(args: dict[str, Any], **environ: str) -> Settings:
    return parse_settings(args, environ, Path("/srv"))


def refused(args: dict[str, Any], **environ: str) -> list[str]:
    """Return the problems of settings that must be refused."""
    with pytest.raises(SettingsError) as error:
        parse(args, **environ)
    return str(error.value).splitlines()

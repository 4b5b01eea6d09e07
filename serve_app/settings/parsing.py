"""Parsing of the settings, with every problem reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serve_app.settings.findings import Finding, explain, find, find_unusable, known_places
from serve_app.settings.settings import Settings
from serve_app.settings.workflows import WorkflowSettings


class SettingsError(ValueError):
    """The settings cannot be used; one line per problem."""


def parse_settings(
    args: Mapping[str, Any], environ: Mapping[str, str], base: Path | None = None
) -> Settings:
    """Return the settings of the application.

    Parameters
    ----------
    args : mapping
        The value of ``args`` in the configuration file.
    environ : mapping
        Environment variables; ``EXPOSED_WORKFLOWS`` is read.
    base : Path, optional
        Folder that relative paths start from; the working directory by default.

    Raises
    ------
    SettingsError
        Listing every problem, as ``python -m serve_app.check`` does.
    """
    findings = find_in_args(args, ("args",))
    names = [name.strip() for name in environ.get("EXPOSED_WORKFLOWS", "").split(",")]
    exposed = [name for name in names if name]
    if exposed:
        findings += _find_in_exposed(exposed, args)
    if findings:
        raise SettingsError("\n".join(map(str, findings)))
    settings = Settings.model_validate(dict(args))
    if exposed:
        workflows = settings.workflows.model_copy(update={"exposed": tuple(exposed)})
        settings = settings.model_copy(update={"workflows": workflows})
    return settings.resolved(Path.cwd() if base is None else base)


def find_in_args(args: Mapping[str, Any], path: Sequence[str | int]) -> list[Finding]:
    """Return the problems of the value of ``args``, which is at `path` in the file."""
    place = tuple(path)
    return find_unusable(args, place) or find(args, Settings, place, known_places(Settings))


def _find_in_exposed(exposed: Sequence[str], args: Mapping[str, Any]) -> list[Finding]:
    workflows = args.get("workflows")
    custom = workflows.get("custom", ()) if isinstance(workflows, Mapping) else ()
    values = {"custom": custom, "exposed": exposed}
    try:
        WorkflowSettings.model_validate(values)
    except ValidationError as error:
        return [
            Finding(("EXPOSED_WORKFLOWS",), finding.message)
            for finding in explain(error, values, ())
            if finding.path[:1] == ("exposed",)
        ]
    return []

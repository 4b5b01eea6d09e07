"""Files, modules, links and headings that the pages name exist."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

TOP = "serve_app|deployments|workflows|tests|benchmarks|examples|config|docs"
PATH = re.compile(rf"(?<![\w/.-])(?:{TOP})/[\w./-]*\w(?![\w<])")
MODULE = re.compile(rf"(?<![\w/.-])(?:{TOP})(?:\.[a-z_]\w*)+(?![\w/])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
WRITTEN_LATER = {"benchmarks/results/latest.json", "benchmarks/results/comparison.json"}
PLACEHOLDERS = {"config/kuberay/overlays/NAME"}


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text())) - WRITTEN_LATER - PLACEHOLDERS
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    def exists(name: str) -> bool:
        path = ROOT.joinpath(*name.split("."))
        return path.is_dir() or path.with_suffix(".py").exists()

    named = sorted(set(MODULE.findall(page.read_text())))
    # The last part may be a name that the module defines.
    assert [n for n in named if not exists(n) and not exists(n.rpartition(".")[0])] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_a_module_that_runs(page: Path) -> None:
    for name in re.findall(r"python -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(name) is not None, name

"""The papers are true: ARCHITECTURE.md names what is there, CHANGELOG.md is built of `changelog.d`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import changelog
from tests.test_layers import PACKAGE, ROWS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MODULES = sorted(set(re.findall(r"(?<![\w/.])((?:[a-z_]+/)*[a-z_]+\.py)\b", PAGE)))
LAWS = re.findall(r"^\| `([a-z_]+)/` \| (.+) \|$", PAGE, re.MULTILINE)
NAMES = re.findall(r"`([a-z_/]+\.py)`: `(\w+)`", PAGE)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_that_is_named_is_there(module: str) -> None:
    assert (PACKAGE / module).is_file() or (ROOT / module).is_file()


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_what_is_named_in_a_module_is_in_it(module: str, name: str) -> None:
    named = rf"^(?:\s*(?:async )?def|class) {name}\b|^{name}\b *[:=]"
    assert re.search(named, (PACKAGE / module).read_text(), re.MULTILINE)


def test_the_page_names_enough_to_be_held_against() -> None:
    assert len(MODULES) > 30
    assert len(NAMES) >= 4


def test_the_rows_are_those_that_imports_are_held_to() -> None:
    lines = PAGE[PAGE.index("| row | wings |") : PAGE.index("`scheduler/` stands beside")].splitlines()[2:]
    rows = [set(re.findall(r"`(\w+)`", line)) for line in lines if line.startswith("|")]
    assert [{name.replace("__init__", "") for name in row} for row in rows] == ROWS


@pytest.mark.parametrize(("wing", "law"), LAWS)
def test_a_wings_law_is_the_first_line_of_its_face(wing: str, law: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text())) or ""
    assert said.splitlines()[0] == law


def test_each_wing_has_a_law() -> None:
    wings = {each.name for each in PACKAGE.iterdir() if (each / "__init__.py").is_file()}
    assert {wing for wing, _ in LAWS} == wings - {"mcp"}


def test_the_changes_are_told() -> None:
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8") == changelog.page(), "run scripts/changelog"


def test_a_file_that_a_docstring_names_is_there() -> None:
    files = [
        f"/{path.relative_to(ROOT)}"
        for folder in ("dafx_actors", "tests", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    lost = [
        f"{path.relative_to(ROOT)}: {named}"
        for path in PACKAGE.rglob("*.py")
        for named in re.findall(r"`([\w/]+\.py)[`:]", path.read_text(encoding="utf-8"))
        if not any(file.endswith(f"/{named}") for file in files)
    ]
    assert not lost

"""Every row of the concept page leads to code, a page and a test that exist; nothing is imported to find out."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from support import ROOT

PAGE = ROOT / "docs" / "concepts.md"
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


def rows() -> list[tuple[str, list[str]]]:
    """Section and cells of every row, without the tables' heads."""
    found, section = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[1] != "code":
            found.append((section, cells))
    return found


ROWS = rows()
EVERY_ROW = pytest.mark.parametrize("cells", [cells for _, cells in ROWS], ids=[cells[0][:50] for _, cells in ROWS])


@functools.cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes and constants at the top of a Python file."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return frozenset(found)


@EVERY_ROW
def test_a_row_leads_to_code_a_page_and_a_test(cells: list[str]) -> None:
    assert len(cells) == 4
    code, pages, proofs = (LINK.findall(cell) for cell in cells[1:])
    assert code
    assert pages
    assert proofs
    for name, target in (*code, *proofs):
        file = (PAGE.parent / target).resolve()
        assert file.is_file(), target
        assert name.strip("`") in names_in(file), f"{target} has no {name}"
    assert not any(target.startswith("../tests/") for _, target in code)
    for name, target in proofs:
        assert target.startswith("../tests/")
        assert name.strip("`").startswith(("test_", "shows_"))
    for _, target in pages:
        assert (PAGE.parent / target).is_file(), target


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ("Systems", 19),
        ("Layers and equations", 34),
        ("Diagnoses", 5),
        ("Worked examples", 17),
        ("Errors in the notes", 11),
    ],
)
def test_no_row_is_lost(section: str, count: int) -> None:
    assert sum(name == section for name, _ in ROWS) >= count


def test_what_shows_a_claim_is_called_by_a_test() -> None:
    """The functions `shows_...` are run by their names, of which each comparison has one."""
    claims = (ROOT / "tests" / "foundations" / "test_claims.py").read_text(encoding="utf-8")
    names = re.search(r"NAMES = \((.*?)\)", claims, re.DOTALL)
    assert names
    assert set(re.findall(r"def shows_(\w+)", claims)) == set(re.findall(r'"(\w+)"', names[1]))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_named_uses_stand_on_the_pages_that_serve_them() -> None:
    assert "movie ratings and recommendation" in page("sentiment")
    for name in ("detector", "tagging"):
        assert "DNA" in page(name)
    assert "speech" in page("tagging")
    assert "differential equation" in page("memory")


def test_pretrained_language_models_are_named_with_the_way_there() -> None:
    for name, models in {"textgen": ("GPT",), "sentiment": ("BERT", "RoBERTa"), "translation": ("T5",)}.items():
        assert "KerasHub" in page(name)
        for model in models:
            assert model in page(name)

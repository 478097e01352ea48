"""The page of a verification: all of it, in one file, and nothing that is private."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from poss_export.bundling.verify import verify
from poss_export.errors import InputError
from poss_export.evaluation.checks import Check, Verification
from poss_export.evaluation.report import write_report
from poss_export.prompts import as_prompts

SECRET = "<77> <5>"


@pytest.fixture(scope="module")
def found(tiny_bundle: Path, tiny_folder: Callable[[str], Path]) -> Verification:
    places: dict[str, Any] = {"target": str(tiny_folder("llama")), "threads": 1, "costs": True}
    return verify(tiny_bundle, prompts=as_prompts([SECRET]), max_new_tokens=12, draws=600, **places)


def page(found: Verification, folder: Path, **options: Any) -> str:
    path = folder / "report.html"
    write_report(found, path, **options)
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Tags that are open, and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.pictures += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_alone(found: Verification, tmp_path: Path) -> None:
    text = page(found, tmp_path)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.pictures == 4
    assert not re.search(r'<script|<link|<img|@import|url\((?!#)|(?:src|href)="(?!#)', text)
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len({*identities})


def test_every_check_and_figure_is_told(found: Verification, tmp_path: Path) -> None:
    text = page(found, tmp_path)
    assert all(f'<td class="name">{check.name}</td>' in text for check in found.checks)
    assert found.costs is not None
    assert f"{found.costs.rounds[0][0]:.2f}" in text
    assert found.manifest.graph_sha256("draft") in text
    assert str(found.engine["device"]) in text


def test_nothing_private_is_told(
    found: Verification, tiny_bundle: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    text = page(found, tmp_path)
    for private in (tiny_bundle, tiny_folder("llama"), tmp_path, Path.home()):
        assert str(private.parent) not in text or private.parent == Path("/")
    assert "&lt;77&gt;" not in text
    assert "<77>" not in text


def parted(found: Verification) -> Verification:
    """Let an answer part, far and close, in the names of a bundle that wants to be more than text."""
    case = {"answer": 1, "position": 3, "gap": 0.5, "kind": "mismatch"}
    check = next(check for check in found.checks if check.name.startswith("greedy"))
    figures = {**check.figures, "mismatches": 1, "divergences": [case, {**case, "gap": None}]}
    wrong = Check(check.name, False, "a < b", (f"mismatch at token 3: {SECRET!r}",), figures)
    target = replace(found.manifest.target, name="<script>alert(1)</script>")
    checks = tuple(wrong if one is check else one for one in found.checks)
    return replace(found, manifest=replace(found.manifest, target=target), checks=checks)


def test_what_parts_is_told_with_prompts_where_asked(found: Verification, tmp_path: Path) -> None:
    wrong = parted(found)
    assert wrong.failed
    text = page(wrong, tmp_path)
    assert "a &lt; b" in text
    assert '<td class="number">3</td><td class="number">5.0e-01</td><td>mismatch</td>' in text
    assert "<script" not in text
    assert "&lt;77&gt;" not in text
    assert "&lt;77&gt; &lt;5&gt;" in page(wrong, tmp_path, prompts=True)


def test_without_costs_or_drafts_there_is_a_page(found: Verification, tmp_path: Path) -> None:
    few = replace(found, checks=found.checks[:1], costs=None)
    text = page(few, tmp_path)
    assert "Not measured." in text
    assert "<svg" not in text


def test_a_report_is_a_page(found: Verification, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name a file that ends in \.html"):
        write_report(found, tmp_path / "report.pdf")
    with pytest.raises(InputError, match="no folder"):
        write_report(found, tmp_path / "none" / "report.html")

"""`poss-export inspect`: cards for people, everything as JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poss_export.config import TreeShape
from poss_export.manifest import read_manifest, write_manifest
from tests.cli.command import done, refused


def card(thing: object) -> dict[str, str]:
    """Return the rows of the card of a thing, the title under "title"."""
    title, *lines = done("inspect", thing).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    return {"title": title.strip(), **dict(line.strip().split("  ", 1) for line in lines)}


@pytest.mark.parametrize("kind", ["bundle", "drafter", "target"])
def test_json_tells_everything(kind: str, request: pytest.FixtureRequest) -> None:
    thing = request.getfixturevalue(kind)
    facts = json.loads(done("inspect", thing, "--json").stdout)
    assert facts["kind"] == kind
    config = facts["drafter"]["config"] if kind == "bundle" else facts["config"]
    assert config["hidden_size"] == 64


def test_the_card_of_a_bundle(bundle: Path, target: Path, drafter: Path) -> None:
    rows = {name: text.strip() for name, text in card(bundle).items()}
    assert rows["title"] == f"tiny: bundle of {target.name}, drafter {drafter.name}"
    assert rows["target"].startswith(f"{target.name}, 0.1 million parameters, fp32, ")
    assert rows["tree"] == "8 drafted tokens, depth 4, top-k 4"
    assert rows["capacity"] == "48 tokens of prompt and answer"
    assert rows["runs on"] == "ONNX Runtime; shared caches"
    assert rows["parity"].endswith(" of PyTorch")
    assert rows["lossless"] == "yes; where two logits are within 1e-04, rounding may decide"
    assert rows["at once"] == "as alone, bit for bit, with 8 in a call"
    assert "perplexity" not in rows
    assert rows["acceptance"].startswith("expected calibration error")


def test_cards_of_checkpoints(target: Path, drafter: Path) -> None:
    rows = {name: text.strip() for name, text in card(drafter).items()}
    assert rows["title"] == f"{drafter.name}: drafter"
    assert rows["specialists"] == "3, each for 2 draft positions"
    assert rows["vocabulary"] == "60 of 96 tokens can be drafted"
    rows = {name: text.strip() for name, text in card(target).items()}
    assert rows["title"] == f"{target.name}: target"
    assert (rows["architecture"], rows["vocabulary"]) == ("llama", "96 tokens, tied embeddings")


QUALITY = {
    "text": {
        "tokens": 384,
        "perplexity": 15.2,
        "reference_perplexity": 14.9,
        "divergence": 0.02,
        "agreement": 0.921,
    },
    "rounds": {"prompts": 8, "tau": 2.61, "reference_tau": 2.7, "equal_answers": 8},
    "ms": {
        "quantised": {"target": {"1": 11.9}, "draft": 2.2, "round": 21.3},
        "reference": {"target": {"1": 28.1}, "draft": 4.2, "round": 41.3},
    },
}


@pytest.mark.parametrize(
    ("widths", "tree", "sentence"),
    [
        ((2, 0.0), (5, 4, 11), "bit for bit, in chains"),
        ((2, 0.0002), (5, 4, 11), "yes; where two logits are within 4e-04"),
        ((2, 0.5), (5, 1, 5), "yes, bit for bit"),
        ((2, 0.5), (5, 4, 11), "bit for bit, in chains"),
        ((None, 0.5), (5, 1, 5), "not claimed"),
    ],
)
def test_a_quantised_bundle_says_what_it_costs(
    widths: tuple[int | None, float], tree: tuple[int, int, int], sentence: str, copy: Path
) -> None:
    manifest = read_manifest(copy)
    assert manifest.drafter is not None
    quality = {**QUALITY, "widths": {"least_width": widths[0], "siblings": widths[1]}}
    scheme: dict[str, Any] = {"scheme": "w8a8"}
    drafter = replace(manifest.drafter, tree=TreeShape(*tree))
    changed = replace(manifest, drafter=drafter, quality=quality, quantisation={"target": scheme})
    write_manifest(copy, changed)
    text = done("inspect", copy).stdout
    for part in (
        *(", w8a8, ", "15.200, in floating point 14.900", "92.1% of 384 next tokens"),
        *("2.61 tokens a round, in floating point 2.70", "11.9 ms of the target alone", "21.3 ms where"),
        sentence,
    ):
        assert part in text


def test_inspect_refuses_what_is_nothing(tmp_path: Path) -> None:
    assert "neither a folder nor a .gguf file" in refused("inspect", tmp_path / "none")


def test_a_manifest_of_another_making_is_one_message(copy: Path) -> None:
    write_manifest(copy, replace(read_manifest(copy), quality={"text": 1}))
    assert "does not describe itself; rebuild it (KeyError: 'rounds')" in refused("inspect", copy)

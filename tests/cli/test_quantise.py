"""`build` of quantised bundles of tiny models: what it writes, and what `verify` claims."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import Result

from poss_export.acceptance import AcceptanceCurves
from poss_export.bundling import graphs
from poss_export.calibration.record import load_record
from poss_export.manifest import Manifest, read_manifest
from poss_export.runtime.bundle import open_bundle
from tests.cli.command import CAPACITY, done, run, words

# Random weights suffer more than those of a real target.
LOOSE = ("--max-perplexity", 9e9, "--min-agreement", 0, "--min-tau", 0, "--budget", 9e9)


@pytest.fixture(scope="module", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Export each form of the target and the drafter once: PyTorch takes most of the time of a build."""
    folder = tmp_path_factory.mktemp("exports")
    exports = {name: getattr(graphs, name) for name in ("export_target", "export_drafter")}
    results = dict[str, Any]()

    def once(name: str, model: Any, path: Path, **shape: Any) -> Any:
        tree = getattr(model, "tree", None)
        key = f"{name} {tree} {sorted(shape.items())}"
        kept = folder / str(list(results).index(key) if key in results else len(results))
        if key not in results:
            kept.mkdir()
            results[key] = exports[name](model, kept / path.name, **shape)
        for file in kept.iterdir():
            shutil.copy(file, path.parent / file.name)
        return results[key]

    with pytest.MonkeyPatch.context() as patch:
        for name in exports:
            patch.setattr(graphs, name, lambda *a, name=name, **s: once(name, *a, **s))
        yield


@pytest.fixture(scope="module")
def build(
    options: tuple[object, ...], drafter: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Result]]:
    """Return build(*words): the folder and what was said; {drafter} and {samples} stand for these."""

    @cache
    def make(*words: object) -> tuple[Path, Result]:
        folder = tmp_path_factory.mktemp("bundles") / "out"
        given = [str(word).format(drafter=drafter, samples=samples) for word in words]
        return folder, done(*options, "-o", folder, *LOOSE, *given)

    return make


BOTH = (
    "--drafter",
    "{drafter}",
    "--samples",
    "{samples}",
    "--precision",
    "w8a8",
    "--draft-precision",
    "w8a8",
)
CHAIN = (*BOTH, "--top-k", 1, "--tree-nodes", 3)


def operators(folder: Path, graph: str) -> set[str]:
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    return {node.op_type for node in model.graph.node}


def verified(folder: Path, inputs: Path) -> dict[str, Any]:
    """Return what each check of `verify` says; it must exit with 0."""
    draws = ("--draws", 400, "--max-new-tokens", 24, "--threads", 1)
    result = done("verify", folder, "--prompts", inputs / "three.jsonl", *draws, "--json")
    return {check["name"]: check for check in map(json.loads, result.stdout.splitlines())}


def check_figures(manifest: Manifest) -> None:
    assert manifest.quality is not None
    text, rounds = manifest.quality["text"], manifest.quality["rounds"]
    assert text["tokens"] in (4 * CAPACITY, 2 * CAPACITY)
    assert text["perplexity"] > 0 < text["reference_perplexity"]
    assert text["divergence"] > 0
    assert 0 < text["agreement"] < 1
    assert (rounds == {}) == (manifest.drafter is None)
    assert manifest.quality["request"]["thresholds"] == {"perplexity": 9e9, "agreement": 0.0, "tau": 0.0}


def test_target_and_drafter_in_eight_bits(build: Any, samples: Path, inputs: Path) -> None:
    folder, result = build(*BOTH)
    manifest, record = read_manifest(folder, full=True), load_record(samples)
    assert (manifest.label("target"), manifest.label("draft"), manifest.precision) == ("w8a8", "w8a8", "fp32")
    check_figures(manifest)
    for graph in ("target", "draft"):
        assert "MatMulIntegerToFloat" in operators(folder, graph)
        made = manifest.quantisation[graph]
        assert made["request"]["samples"] == record.sha256
        assert {*made["schemes"].values()} == {"w8a8"}
        assert made["limits"]
        assert made["scales"]
    assert len(manifest.quantisation["target"]["sensitivity"]) == 9
    assert {path.name for path in folder.parent.iterdir()} == {"out"}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files}
    acceptance = AcceptanceCurves.load(folder / "acceptance.json")
    assert manifest.drafter is not None
    assert acceptance.tree == manifest.drafter.tree
    assert acceptance.target_sha256 == record.target_sha256
    assert "perplexity" in result.stdout
    assert manifest.quality is not None
    assert f"{manifest.quality['text']['perplexity']:.3f}" in result.stdout
    checks = verified(folder, inputs)
    assert checks["files"]["passed"] is True
    assert checks["parity"]["passed"] is None
    assert checks["sampling: distribution"]["passed"] is True
    greedy = checks["greedy: speculative = target-only"]
    assert greedy["passed"] is True  # plans are chains
    assert checks["draft rows at once = in parts"]["passed"] is None


def test_an_exact_chain_gives_equal_answers(build: Any, inputs: Path) -> None:
    folder, _ = build(*CHAIN)
    manifest = read_manifest(folder)
    assert manifest.quality is not None
    widths, rounds = manifest.quality["widths"], manifest.quality["rounds"]
    assert widths["neighbours"] == 0  # fixed scales: rows do not know of each other
    assert manifest.exactness.claims(chain=True) == (widths["least_width"] is not None)
    assert manifest.exactness.claims(chain=True)
    assert rounds["equal_answers"] == rounds["prompts"] == 3
    greedy = verified(folder, inputs)["greedy: speculative = target-only"]
    assert greedy["passed"] is True
    assert "0 mismatches, 0 near-ties" in greedy["detail"]
    with open_bundle(folder, threads=1) as bundle:  # calls are filled up to the last row of the caches
        ours, plain = (
            bundle.generate(words(5, 9), raw=True, target_only=only, max_new_tokens=2 * CAPACITY)
            for only in (False, True)
        )
    assert ours.token_ids == plain.token_ids
    assert plain.tokens > CAPACITY - 3


@pytest.mark.parametrize("scheme", ["w8a16", "w8a24"])
def test_digits_are_exact(scheme: str, build: Any, inputs: Path) -> None:
    """In chains bit for bit; of trees no more is claimed than was measured."""
    folder, _ = build(*BOTH[:4], "--precision", scheme)
    manifest = read_manifest(folder, full=True)
    check_figures(manifest)
    assert "MatMulNBits" not in operators(folder, "target")
    assert manifest.quantisation["target"]["sensitivity"] == {}
    exactness = manifest.exactness
    assert exactness.chain_tie == 0
    assert exactness.tree_tie is None or 0 < exactness.tree_tie <= 1e-3
    checks = verified(folder, inputs)
    assert checks["n tokens = n steps"]["passed"] is True
    assert checks["tree = its paths"]["passed"] is (None if exactness.tree_tie is None else True)
    assert checks["greedy: speculative = target-only"]["passed"] is True  # plans keep to what is exact


def test_the_same_again_is_unchanged(
    build: Any, options: Any, drafter: Path, samples: Path, tmp_path: Path
) -> None:
    folder, _ = build(*CHAIN)
    given = [str(word).format(drafter=drafter, samples=samples) for word in CHAIN]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = done(*options, "-o", folder, *LOOSE, *given)
    assert f"{folder} is unchanged: nothing to build" in result.stderr
    text = tmp_path / "text.txt"
    text.write_text("<5> <9> <7> " * 200)
    for other, what in (
        (["--draft-precision", "int8"], "quantisation"),
        (["--precision", "fp32"], "quantisation"),
        (["--layer-precision", "head=int8"], "quantisation"),
        (["--observer", "mse"], "quantisation"),
        (["--min-agreement", 0.01], "measure of quality"),
        (["--held-out", text], "measure of quality"),
    ):
        result = run(*options, "-o", folder, *LOOSE, *given, *other)
        assert result.exit_code == 2
        assert f"it has another {what} (" in result.stderr
        assert result.stderr.endswith(", or replace it (--force)\n")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_weights_only_need_no_samples(build: Any, inputs: Path) -> None:
    folder, result = build("--precision", "int8")
    manifest = read_manifest(folder, full=True)
    assert (manifest.drafter, manifest.label("target")) == (None, "int8")
    check_figures(manifest)
    assert "MatMulNBits" in operators(folder, "target")
    assert "acceptance.json" not in manifest.files
    assert manifest.quantisation["target"]["request"]["samples"] is None
    assert "tau" not in result.stdout
    checks = verified(folder, inputs)
    claimed = manifest.exactness.claims(chain=True)
    assert checks["greedy: speculative = target-only"]["passed"] is (True if claimed else None)
    assert checks["sampling: distribution"]["detail"].startswith("400 draws")
    with open_bundle(folder, threads=1) as bundle:
        answer = bundle.generate(words(5, 9), raw=True, target_only=True, max_new_tokens=8)
    assert answer.tokens == 8


def test_four_bits_with_layers_of_their_own(build: Any) -> None:
    layers = ("--layer-precision", "*.0.*=float", "--layer-precision", "*.down.*=int8")
    drafts = ("--draft-precision", "int4", "--draft-layer-precision", "fusion=float")
    folder, _ = build(*BOTH[:4], "--precision", "int4", *layers, *drafts)
    manifest = read_manifest(folder)
    check_figures(manifest)
    made = {graph: values["schemes"] for graph, values in manifest.quantisation.items()}
    assert made["target"] == {
        "decoder.layers.0.mlp.down.weight": "int8",
        "decoder.layers.1.mlp.down.weight": "int8",
        "decoder.lm_head/head": "int8",
        **{f"decoder.layers.1.{name}.weight": "int4" for name in ("qkv", "output", "mlp.gate_up")},
    }
    assert not any("fusion" in name for name in made["draft"])
    assert {scheme for name, scheme in made["draft"].items() if not name.endswith("/head")} == {"int4"}


@pytest.mark.parametrize("scheme", ["int8", "w8a16"])
def test_a_quantised_drafter_leaves_a_float_target_lossless(scheme: str, build: Any, inputs: Path) -> None:
    folder, _ = build(*BOTH[:4], "--draft-precision", scheme)
    manifest = read_manifest(folder)
    assert (manifest.label("target"), manifest.label("draft")) == ("fp32", scheme)
    assert manifest.quality is None  # there is no text that the drafter could change
    assert manifest.calibration is not None
    tried = manifest.calibration["drafter"]
    assert (tried["kept"], tried["why"], tried["ms"]) == (scheme, "asked for", {})
    assert tried["tau"].keys() == {"float", scheme}
    checks = verified(folder, inputs)
    assert checks["greedy: speculative = target-only"]["passed"] is True
    assert checks["tree = its paths"]["passed"] is True


def test_samples_alone_calibrate_acceptance(
    float_options: Any, drafter: Path, samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    given = ("--drafter", drafter, "--draft-precision", "float", "--samples", samples)
    done(*float_options, "-o", folder, *given)
    manifest = read_manifest(folder, full=True)
    assert (manifest.quantisation, manifest.quality) == ({}, None)
    assert AcceptanceCurves.load(folder / "acceptance.json").dialogues == 12
    without = Path(shutil.copytree(samples.parent / "float", tmp_path / "float"))
    result = run(*float_options, "-o", without, *given)
    assert result.exit_code == 2  # or a bundle that learned from others would pass as what was asked for
    assert "it has another calibration" in result.stderr


@pytest.mark.parametrize(("scheme", "operator"), [("w8a8", "QuantizeLinear"), ("fp8", "QuantizeLinear"),
                                                  ("int4", "DequantizeLinear")])  # fmt: skip
def test_static_forms(scheme: str, operator: str, build: Any) -> None:
    drafts = BOTH[6:] if scheme == "w8a8" else ()
    folder, _ = build(*BOTH[:4], "--cache-form", "static", "--precision", scheme, *drafts)
    manifest = read_manifest(folder, full=True)
    assert (manifest.cache_form, manifest.precision, manifest.label("target")) == ("static", "fp16", scheme)
    check_figures(manifest)
    assert operator in operators(folder, "target")
    domains = {
        entry.domain for entry in onnx.load(folder / "target.onnx", load_external_data=False).opset_import
    }
    assert "com.microsoft" not in domains
    assert not manifest.exactness.claims(chain=True)  # on the CPU nothing is learned of engines
    assert AcceptanceCurves.load(folder / "acceptance.json").dialogues == 12
    if scheme == "int4":
        assert "decoder.lm_head/head" not in manifest.quantisation["target"]["schemes"]
    with open_bundle(folder, threads=1) as bundle:
        assert bundle.generate(words(5, 9), raw=True, max_new_tokens=5).tokens == 5


def test_a_missed_threshold_leaves_the_figures_and_no_bundle(
    build: Any, options: Any, tmp_path: Path, samples: Path, drafter: Path
) -> None:
    folder, _ = build(*BOTH)
    quality: Any = read_manifest(folder).quality
    given = [str(word).format(drafter=drafter, samples=samples) for word in BOTH]
    strict = ("--max-perplexity", 1e-3, "--min-agreement", 1.5, "--min-tau", 99, "--budget", 9e9)
    result = run(*options, *given, "-o", tmp_path / "out", *strict)
    assert result.exit_code == 1
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: the quantised bundle is not good enough: ")
    for sentence in (
        f"perplexity is {quality['text']['perplexity']:.3f}, allowed are",
        f"agreement is {quality['text']['agreement']:.3f}, wanted are 1.5",
        f"tau is {quality['rounds']['tau']:.2f}, wanted are",
    ):
        assert sentence in line
    assert not list(tmp_path.iterdir())

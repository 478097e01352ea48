"""`build` with a drafter and nothing asked: which precision it keeps, what it says, what it learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from poss_export.acceptance import AcceptanceCurves
from poss_export.bundling import draft_choice
from poss_export.manifest import read_manifest
from poss_export.runtime.bundle import open_bundle
from tests.cli.command import done, run, words


@pytest.fixture(scope="module")
def build(
    float_options: Any, drafter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], tuple[Path, str]]:
    """Return build(ms): the bundle whose quantised drafter takes so long beside 2 ms, and what was said."""

    def make(ms: float) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("choice") / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_choice, "time_rounds", lambda *_: {"float": 2.0, "w8a8": ms})
            return folder, done(*float_options, "--drafter", drafter, "-o", folder).stdout

    return make


@pytest.mark.parametrize(("ms", "kept"), [(0.1, "w8a8"), (90.0, "float")])
def test_the_faster_drafter_is_kept(
    ms: float, kept: str, build: Any, float_options: Any, drafter: Path, inputs: Path
) -> None:
    folder, said = build(ms)
    manifest = read_manifest(folder, full=True)
    assert manifest.calibration is not None
    tried = manifest.calibration["drafter"]
    assert (tried["kept"], tried["why"]) == (kept, "most tokens a second")
    assert tried["ms"] == {"float": 2.0, "w8a8": ms}
    assert manifest.calibration["tau"] == tried["tau"][kept]
    assert f"drafter: {kept}, most tokens a second: float {tried['tau']['float']:.2f} tokens a round" in said
    graph = onnx.load(folder / "draft.onnx", load_external_data=False)
    quantised = any(node.op_type == "MatMulIntegerToFloat" for node in graph.graph.node)
    assert quantised == ("draft" in manifest.quantisation) == (kept == "w8a8")
    assert manifest.exactness.claims(chain=False)  # the target's alone
    acceptance = AcceptanceCurves.load(folder / "acceptance.json")
    assert (acceptance.dialogues, acceptance.rounds) == (12, manifest.calibration["rounds"])
    with open_bundle(folder, threads=1) as bundle:
        ours, plain = (
            bundle.generate(words(5, 9), raw=True, target_only=only, max_new_tokens=30)
            for only in (False, True)
        )
    assert ours.token_ids == plain.token_ids
    given = (*float_options, "--drafter", drafter, "-o", folder)
    assert "is unchanged: nothing to build" in done(*given).stderr
    asked = run(*given, "--draft-precision", "w8a8")
    assert asked.exit_code == 2  # or chance would have chosen what was asked for
    assert "it has another calibration" in asked.stderr


def test_rates_decide() -> None:
    assert draft_choice.faster({"float": 2.0, "w8a8": 1.8}, {"float": 10.0, "w8a8": 9.5}) == "float"
    assert draft_choice.faster({"float": 2.0, "w8a8": 1.8}, {"float": 10.0, "w8a8": 8.5}) == "w8a8"
    assert draft_choice.faster({"float": 2.0, "w8a8": 2.0}, {"float": 10.0, "w8a8": 10.0}) == "w8a8"

"""Plans of tiny builds: defaults, sizes, and what is refused before any work."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from poss_export.bundling.engine_request import EngineRequest
from poss_export.bundling.plan import Plan, plan_build
from poss_export.bundling.quantise_request import QuantiseRequest
from poss_export.bundling.sizes import engine_bytes
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import DrafterCheckpoint
from poss_export.engine_spec import EngineOptions, target_profiles
from poss_export.errors import CheckpointError, InputError
from poss_export.quantisation.decisions import GraphRequest
from poss_export.targets.checkpoint import open_target
from poss_export.text import Text, TextConfig

TREE = TreeShape(3, 2, 5)


@pytest.fixture
def make_plan(tiny_folder: Any, random_drafter: Any) -> Callable[..., Plan]:
    """Return make_plan(drafter=True, target_sha256=None, ...): of a tiny target of 128 positions."""

    def make(drafter: bool = True, target_sha256: str | None = None, **changes: Any) -> Plan:
        target = open_target(str(tiny_folder("llama")))
        checkpoint = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), target_sha256)
        values = {"tree": TREE, "capacity": 48, "precision": "fp32", "cache_form": "shared", **changes}
        return plan_build(target, checkpoint if drafter else None, **values)

    return make


def test_a_capacity_left_out_is_the_targets_longest_context(make_plan: Callable[..., Plan]) -> None:
    assert make_plan(capacity=None).capacity == 128


def test_a_plan_tells_sizes(make_plan: Callable[..., Plan]) -> None:
    full, half = (make_plan(precision=precision).to_dict() for precision in ("fp32", "fp16"))
    parameters = full["target"]["parameters"]
    assert full["files"]["target.onnx.data"] == 4 * parameters == 2 * half["files"]["target.onnx.data"]
    assert full["files"]["draft.onnx.data"] == 4 * full["drafter"]["parameters"]
    assert full["cache_bytes"] == {"target": 2 * 2 * 2 * 48 * 16 * 4, "drafter": 2 * 2 * 2 * 48 * 16 * 4}
    assert make_plan(drafter=False).to_dict()["drafter"] is None


def test_bfloat16_has_a_size(make_plan: Callable[..., Plan]) -> None:
    half, brain = (make_plan(precision=kind, cache_form="static").to_dict() for kind in ("fp16", "bf16"))
    assert {**brain, "precision": "fp16"} == half


def test_quantised_weights_are_smaller_and_a_tied_head_is_a_copy(make_plan: Callable[..., Plan]) -> None:
    quantise = QuantiseRequest({"target": GraphRequest("int8")})
    plan = make_plan(drafter=False, quantise=quantise)
    target, planned = plan.target, plan.to_dict()
    table = target.config.vocab_size * target.config.hidden_size
    small = planned["files"]["target.onnx.data"]
    assert small < 4 * target.parameters
    assert small > 4 * table + target.parameters  # the table, and a byte a weight, scales beside it
    assert planned["quantisation"] == {"target": "int8"}


def test_a_template_is_tried(make_plan: Callable[..., Plan]) -> None:
    """What it does not write is told; one that writes nothing at all is refused before any work."""

    def planned(template: str) -> Plan:
        target = make_plan(drafter=False).target
        text = Text(target.text.tokenizer_json, TextConfig((2,), chat_template=template)).tried()
        values: dict[str, Any] = {"tree": TREE, "capacity": 48, "precision": "fp32", "cache_form": "shared"}
        return plan_build(replace(target, text=text), None, **values)

    assert make_plan().warnings == ()
    assert planned("{% for m in messages %}{{ m.content }}{% endfor %}").warnings == ()
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (warning,) = planned(strict + "{{ messages | length }}").warnings
    assert warning.startswith("the chat template does not write system messages (")
    assert "no system role" in warning
    for template in ("{{ raise_exception('never') }}", "{% endif %}", "{{ nothing.at.all }}"):
        with pytest.raises(CheckpointError, match=r"target .*, whose template was given one message"):
            planned(template)


def engines(capacities: tuple[int, ...] = (), widths: tuple[int, ...] = (), slots: int = 1) -> dict[str, Any]:
    """Return what a plan with engines differs in."""
    request = EngineRequest("tensorrt-rtx", "1.7", EngineOptions(("8.9",)), capacities, widths, slots)
    return {"engines": request, "cache_form": "static"}


def test_engines_are_made_for_a_ladder_of_widths(make_plan: Callable[..., Plan]) -> None:
    usual, asked = make_plan(**engines()), make_plan(**engines(widths=(1, 20)))
    assert usual.engine_profiles(48)["target"] == target_profiles(48, (2, 4, TREE.width))
    assert usual.to_dict()["engines"]["widths"] == [2, 4, TREE.width]
    assert asked.engine_widths == (1, TREE.width, 20)
    alone = make_plan(drafter=False, **engines())
    assert alone.engine_profiles(48) == {"target": target_profiles(48, (2, 4, 8, 16))}


def test_engines_are_made_for_calls_of_several_answers(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(**engines(widths=(4,), slots=4))
    assert plan.to_dict()["engines"]["slots"] == 4
    for graph, profiles in plan.engine_profiles(48).items():
        open_one, *fixed = profiles
        width = TREE.width if graph == "target" else TREE.depth + 1
        assert (open_one.sequences, open_one.fixed) == (1, False)
        ladder = [4, width] if graph == "target" else [width]
        assert [(p.sequences, p.rows) for p in fixed] == [(n, rows) for n in (1, 2, 4) for rows in ladder]
    assert make_plan(**engines(slots=1)).engine_profiles(48) == make_plan(**engines()).engine_profiles(48)


def test_engines_take_more_the_more_profiles_they_have() -> None:
    one, two, single = (
        engine_bytes("target", 1_000_000, target_profiles(48, widths), "fp16") for widths in ((), (2,), (1,))
    )
    assert two["engine"] - one["engine"] == 3_520_000
    assert two["peak_memory"] == one["peak_memory"]
    assert single["engine"] - two["engine"] == 1_000_000  # the weights once more


def test_a_drafter_of_another_target_is_told(make_plan: Callable[..., Plan]) -> None:
    assert make_plan().warnings == ()  # it does not say whose it is
    assert make_plan(target_sha256=make_plan().target.sha256).warnings == ()
    assert make_plan(drafter=False).warnings == ()
    (warning,) = make_plan(target_sha256="1" * 64).warnings
    assert warning.startswith("drafter 'random' was trained for other weights than those of ")


@pytest.mark.parametrize(
    ("changes", "message", "options"),
    [
        ({"capacity": 31}, "capacity is 31 tokens; a bundle needs at least 32", ("capacity",)),
        ({"capacity": 129}, "this target was made for 1 to 128", ("capacity",)),
        ({"tree": TreeShape(1, 61, 61)}, "tree top-k is 61, but the drafter knows 60 words", ("top_k",)),
        (engines(widths=(0,)), "engine width is 0 rows; it may be 1 to 48, the longest", ("engine_widths",)),
        (
            engines(widths=tuple(range(1, 9)), slots=16),
            "widths 1, 2, 3, 4, 5, 6, 7, 8 for calls of so many answers make 41 profiles",
            ("engine_widths", "engine_slots"),
        ),
        (engines((40,), (4, 41)), "engine width is 41 rows; it may be 1 to 40,", ("engine_widths",)),
        (
            {"quantise": QuantiseRequest({"target": GraphRequest("int8")}), "cache_form": "static"},
            "target precision int8 (weights only) is for ONNX Runtime",
            (),
        ),
        (
            {"quantise": QuantiseRequest({"draft": GraphRequest("fp8")})},
            "draft precision fp8 is for TensorRT",
            ("backend",),
        ),
    ],
)
def test_what_does_not_fit_is_refused_without_flags(
    changes: dict[str, Any], message: str, options: tuple[str, ...], make_plan: Callable[..., Plan]
) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(**changes)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)
    assert caught.value.options == options

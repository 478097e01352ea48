"""The figures of a comparison, from answers made by hand, and a whole run with a tiny bundle."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import compare
from benchmarks.answers import Answer
from benchmarks.compare import Row, by_kind, results, summary
from benchmarks.compare_report import print_differences
from benchmarks.contestants import BASELINE, ENGINES, QUALITY, Contestant, Kind, line_up
from benchmarks.questions import Question
from poss_export.errors import InputError
from poss_export.prompts import Prompt


def answer(tokens: list[int], seconds: float, rounds: int | None = None) -> Answer:
    return Answer(tokens, prefill_seconds=1.0, seconds=seconds, rounds=rounds or len(tokens) - 1)


def figures(*rows: Row) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in summary(list(rows), read=30)}


BASE = Row(BASELINE, [[answer([1, 2, 3, 4], 5.0)], [answer([1, 2, 3, 4], 3.0)], [answer([1, 2, 3, 4], 4.0)]])
FAST = Row("fast", [[answer([1, 2, 3, 4], 2.0, 1)]] * 2 + [[answer([1, 2, 3, 4], 9.0, 1)]])


def test_ratios_are_of_medians() -> None:
    found = figures(FAST, BASE)
    assert found[BASELINE]["tokens_per_second"] == pytest.approx(1.0)
    assert found["fast"]["ratio"] == pytest.approx(2.0)


def test_prefill_and_decode_are_apart() -> None:
    found = figures(BASE)[BASELINE]
    assert found["prefill_tokens_per_second"] == pytest.approx(30.0)
    assert found["decode_tokens_per_second"] == pytest.approx(1.0)


def test_tau_counts_tokens_after_prefill() -> None:
    found = figures(FAST, BASE)
    assert found["fast"]["tau"] == pytest.approx(3.0)
    assert found[BASELINE]["tau"] == pytest.approx(1.0)


def test_differences_name_prompt_and_token() -> None:
    base = Row(BASELINE, [[answer([1, 2, 3], 2.0), answer([1, 2, 3], 2.0), answer([1, 2, 3], 2.0)]])
    other = Row("other", [[answer([1, 2, 3], 2.0), answer([1, 9, 3], 2.0), answer([1, 2], 2.0)]])
    found = figures(other, base)["other"]
    assert found["first_differences"] == [(1, 1), (2, 2)]
    assert found["equal_answers"] == 1


def asking(kind: str, tokens: int) -> Question:
    return Question("q", Prompt("1", ("?",), kind), [1] * tokens)


def test_figures_of_a_kind_are_those_of_its_prompts() -> None:
    base = Row(BASELINE, [[answer([1, 2, 3], 3.0), answer([4, 5, 6], 3.0), answer([7, 8, 9], 3.0)]])
    fast = Row("fast", [[answer([1, 2, 3], 2.0, 1), answer([4, 5, 6], 5.0), answer([7, 8, 0], 2.0, 2)]])
    found = by_kind([base, fast], [asking("story", 4), asking("code", 6), asking("story", 5)])
    assert {kind: values["prompts"] for kind, values in found.items()} == {"story": 2, "code": 1}
    story, code = ({row["engine"]: row for row in found[kind]["figures"]} for kind in ("story", "code"))
    assert story["fast"]["decode_ratio"] == pytest.approx(2.0)
    assert code["fast"]["decode_ratio"] == pytest.approx(0.5)
    assert story[BASELINE]["prefill_tokens_per_second"] == pytest.approx(9 / 2)
    assert story["fast"]["tau"] == pytest.approx(4 / 3)
    assert (story["fast"]["equal_answers"], code["fast"]["equal_answers"]) == (1, 1)


def test_differences_are_told_of_engines_of_one_quality(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(BASELINE, [[answer([1, 2, 3], 3.0)]])]
    rows += [Row(name, [[answer([1, 9, 3], 3.0)]]) for name in ("as fine", "coarser")]
    qualities = {BASELINE: "fp32", "as fine": "fp32", "coarser": "8 bits"}
    print_differences(results(rows, [asking("story", 4)], contestants(qualities), []))
    assert capsys.readouterr().out == f"as fine differs from {BASELINE} in q:1, token 1\n"


def contestants(qualities: dict[str, str], **plain: str) -> dict[str, Contestant]:
    """Return contestants that are each of a maker of their own, the first word of the name."""
    return {
        name: Contestant(
            Kind(name.split()[0], "", lambda _: _fail), None, quality, plain.get(name.split()[0])
        )
        for name, quality in qualities.items()
    }


def _fail(ids: list[int], tokens: int) -> Answer:
    raise AssertionError


def test_engines_are_compared_with_those_of_their_quality_and_makers_by_their_best() -> None:
    made = {
        "target-only a": (3.0, [1, 2, 3]),
        "target-only b": (2.0, [1, 2, 9]),
        "peer b": (4.0, [1, 2, 8]),
        "peer a": (6.0, [1, 2, 3]),
        "own b": (8.0, [1, 2, 8]),
    }
    rows = [Row(name, [[answer(tokens, seconds)]]) for name, (seconds, tokens) in made.items()]
    qualities = {name: {"a": "fp32", "b": "8 bits"}[name[-1]] for name in made}
    found = results(rows, [asking("story", 4)], contestants(qualities, own="peer b"), [])
    fine, coarse = ({row["engine"]: row for row in found["precisions"][q]} for q in ("fp32", "8 bits"))
    assert fine.keys() == {"target-only a", "peer a"}
    assert fine["peer a"]["ratio"] == pytest.approx(0.5)
    assert coarse["peer b"]["ratio"] == pytest.approx(0.5)
    assert (coarse["peer b"]["equal_answers"], coarse["peer b"]["equal_to_plain"]) == (0, None)
    assert (coarse["own b"]["equal_answers"], coarse["own b"]["equal_to_plain"]) == (0, 1)
    assert [(row["maker"], row["engine"]) for row in found["best"]] == [
        ("target-only", "target-only b"),
        ("peer", "peer b"),
        ("own", "own b"),
    ]
    assert found["best"][1]["ratio"] == pytest.approx(0.5)


def test_each_bundle_is_in_the_line_up() -> None:
    bundles = {Path("a"): "fp32", Path("b"): "w8a16"}
    found = line_up(bundles, ["speculative", BASELINE, "llama.cpp Q8_0 lookup"])
    assert {name: (one.bundle, one.quality, one.plain) for name, one in found.items()} == {
        "speculative fp32": (Path("a"), "fp32", "target-only fp32"),
        "speculative w8a16": (Path("b"), "8 bits", "target-only w8a16"),
        "target-only fp32": (Path("a"), "fp32", None),
        "target-only w8a16": (Path("b"), "8 bits", None),
        "llama.cpp Q8_0 lookup": (None, "8 bits", "llama.cpp Q8_0"),
    }
    assert list(line_up({Path("a"): "fp32"}, ["speculative"])) == ["speculative"]
    with pytest.raises(InputError, match="name one of each precision"):
        line_up({Path("a"): "fp32", Path("b"): "fp32"}, [])


def test_whoever_speculates_names_who_does_not() -> None:
    plain = {kind.plain for kind in ENGINES.values()} - {None}
    assert plain <= ENGINES.keys()
    assert all(ENGINES[name].plain is None for name in plain if name is not None)


def test_every_peer_says_its_quality() -> None:
    assert {kind.quality for kind in ENGINES.values() if kind.files} == set(QUALITY.values())
    assert all(kind.quality is None for kind in ENGINES.values() if not kind.files)


def test_every_turn_of_every_kind_is_asked_and_reported(chat_bundle: Path, tmp_path: Path) -> None:
    prompts, report = tmp_path / "kinds.jsonl", tmp_path / "report.json"
    prompts.write_text(
        '{"id": "a", "category": "story", "prompt": "<5> <6>"}\n'
        '{"id": "b", "category": "dialogue", "turns": ["<7>", "<8> <9>"]}\n'
    )
    only = ["--only", "speculative", "--only", BASELINE]
    arguments = [chat_bundle, "--prompts", prompts, "--json", report, "--max-new-tokens", 5, "--repeats", 2]
    result = CliRunner().invoke(compare.main, [*map(str, arguments), *only, "--threads", "1"])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    found = json.loads(report.read_text())
    places = [(prompt["place"], prompt["kind"]) for prompt in found["prompts"]]
    first, second = "kinds.jsonl:b", "kinds.jsonl:b, turn 2"
    assert places == [("kinds.jsonl:a", "story"), (first, "dialogue"), (second, "dialogue")]
    answered = found["answers"][BASELINE][0][1]["token_ids"]
    framed = len(answered) + 2, 2 + 2  # the answer and the turn, each in the two words of the template
    assert found["prompts"][2]["tokens"] == found["prompts"][1]["tokens"] + sum(framed)
    kinds = {kind: [row["equal_answers"] for row in part["figures"]] for kind, part in found["kinds"].items()}
    assert kinds == {"story": [1, 1], "dialogue": [2, 2]}
    assert set(found["qualities"].values()) == {"fp32"}
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines.count(["engine", "quality", "story", "dialogue"]) == 4
    assert ["speculative", "fp32", "1/1", "2/2"] in lines


@pytest.mark.slow
def test_peers_that_are_installed_give_our_tokens(
    chat_bundle: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    prompts, report = tmp_path / "q.jsonl", tmp_path / "report.json"
    prompts.write_text('{"prompt": "<5> <6> <5> <6>"}\n')
    ours = [BASELINE, "speculative", "fixed tree"]
    # llama.cpp wants a GGUF file; onnxruntime-genai's conversion of so small a model gives other tokens.
    peers = ["transformers", "dejavuu fp32"]
    speculating = [name for name, kind in ENGINES.items() if kind.plain in peers]
    names = [n for n in (*ours, *peers, *speculating) if find_spec(ENGINES[n].module)]
    arguments = [chat_bundle, "--target", tiny_folder("llama"), "--prompts", prompts, "--json", report]
    arguments += ["--cache", tmp_path / "peers", "--max-new-tokens", 24, "--repeats", 1, "--threads", 1]
    only = [option for name in names for option in ("--only", name)]
    result = CliRunner().invoke(compare.main, [*map(str, arguments), *only])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    figures = json.loads(report.read_text())["precisions"]["fp32"]
    assert {row["engine"]: row["equal_answers"] for row in figures} == dict.fromkeys(names, 1)
    assert {row["equal_to_plain"] for row in figures} == {None, 1}


def test_an_engine_that_is_not_installed_has_a_row(
    chat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "find_spec", lambda module: None if module == "llama_cpp" else module)
    prompts = tmp_path / "q.jsonl"
    prompts.write_text('{"prompt": "<5> <6>"}\n')
    only = ["--only", BASELINE, "--only", "llama.cpp Q8_0"]
    arguments = [str(chat_bundle), "--prompts", str(prompts), "--max-new-tokens", "3", "--repeats", "1"]
    result = CliRunner().invoke(compare.main, [*arguments, *only])
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    assert "not installed: llama.cpp Q8_0" in result.stdout
    assert "by kind" not in result.stdout

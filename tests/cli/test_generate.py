"""`poss-export generate` on a tiny bundle: answers, samples, and one clear message for every bad request."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from poss_export.cli.main import main
from poss_export.runtime import verify
from poss_export.runtime.round import Round
from poss_export.runtime.tree import DraftTree
from tests.cli.command import done, refused, run


def test_generate_prints_text_and_a_summary(bundle: Path) -> None:
    result = done("generate", bundle, "<5> <7>", "--raw", "--max-new-tokens", 6)
    assert len(result.stdout.split()) == 6
    assert "6 tokens in" in result.stderr
    assert result.stderr.endswith(", finish: length\n")


def test_speculative_and_target_only_json(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "<5>"}\n{"turns": ["<9> <4>"]}\n', encoding="utf-8")
    answers = {}
    for mode in ((), ("--target-only",)):
        result = done("generate", bundle, "<3>", "--prompts", prompts, "--raw", "--json", *mode)
        answers[mode] = [json.loads(line) for line in result.stdout.splitlines()]
        assert [answer["prompt"] for answer in answers[mode]] == ["<3>", "<5>", "<9> <4>"]
        assert result.stderr.splitlines()[-1].startswith("3 answers: ")
    ours, plain = answers.values()
    assert [a["token_ids"] for a in ours] == [a["token_ids"] for a in plain]
    assert (
        plain[0].keys()
        == ours[0].keys()
        >= {
            *("prompt", "text", "token_ids", "tokens", "seconds", "tokens_per_second"),
            *("rounds", "tau", "accepted_by_depth", "finish_reason"),
        }
    )


def test_rounds_are_planned_or_whole_trees(planned_bundle: Path) -> None:
    def answer(*options: object) -> tuple[dict[str, Any], str]:
        result = done("generate", planned_bundle, "<5> <7>", "--raw", "--json", *options)
        return json.loads(result.stdout), result.stderr

    planned, told = answer()
    whole, _ = answer("--fixed-tree")
    assert planned["token_ids"] == whole["token_ids"]
    assert "lookup" not in whole["summary"]["rounds"]
    assert planned["summary"]["mean_width"] < whole["summary"]["mean_width"] <= 9
    assert planned["summary"]["expected_seconds"] > 0
    assert whole["summary"]["expected_seconds"] is None
    kinds = ", ".join(f"{count} {kind}" for kind, count in planned["summary"]["rounds"].items())
    assert sorted(told.partition("rounds: ")[2].partition(", finish")[0].split(", ")) == sorted(
        kinds.split(", ")
    )


def test_a_text_of_the_users_is_looked_up_in(planned_bundle: Path, tmp_path: Path) -> None:
    """The answer itself, as a corpus, is proposed from its first tokens on."""
    result = done("generate", planned_bundle, "<5> <7>", "--raw", "--json")
    alone = json.loads(result.stdout)
    (tmp_path / "corpus.txt").write_text(f"<5> <7> {alone['text']}", encoding="utf-8")
    result = done(
        "generate", planned_bundle, "<5> <7>", "--raw", "--json", "--lookup", tmp_path / "corpus.txt"
    )
    helped = json.loads(result.stdout)
    assert helped["token_ids"] == alone["token_ids"]
    assert helped["tau"] > 2 * alone["tau"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "has 0 tokens; expected 1 to 200000"),
        (b"\xff\xfe", "plain text in UTF-8"),
    ],
)
def test_a_text_that_cannot_be_looked_up_in_is_refused(
    bundle: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "corpus.txt").write_bytes(content)
    told = refused("generate", bundle, "<5>", "--raw", "--lookup", tmp_path / "corpus.txt")
    assert message in told
    assert "(--lookup)" in told


def test_a_drafter_whose_tokens_are_never_accepted_is_told(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(tree: DraftTree, wanted: Any) -> Round:
        return Round(tree, (0,), wanted([0]))

    monkeypatch.setattr(verify, "walk", nothing)
    result = done("generate", bundle, "<5>", "--raw", "--max-new-tokens", 30, "--fixed-tree")
    assert "warning: nothing that the drafter proposed was accepted" in result.stderr
    result = done("generate", bundle, "<5>", "--raw", "--max-new-tokens", 30, "--target-only")
    assert "warning" not in result.stderr


def test_all_turns_of_a_prompt_are_asked(chat_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["<9> <4>", "<8>"]}\n{"prompt": "<8>"}\n', encoding="utf-8")
    result = done("generate", chat_bundle, "--prompts", prompts, "--json", "--max-new-tokens", 3)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["<9> <4>", "<8>", "<8>"]
    assert result.stderr.splitlines()[-1].startswith("3 answers: ")


def test_sampling_options_reach_the_sampler(bundle: Path) -> None:
    def sampled(*options: object) -> list[int]:
        result = done("generate", bundle, "<5>", "--raw", "--json", "--max-new-tokens", 12, *options)
        tokens: list[int] = json.loads(result.stdout)["token_ids"]
        return tokens

    greedy = sampled()
    for narrow in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1)):
        assert sampled("--temperature", 5, *narrow) == greedy
    seeds = [sampled("--temperature", 5, "--seed", seed) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_stop_string_ends_the_answer(bundle: Path) -> None:
    words = done("generate", bundle, "<5>", "--raw", "--max-new-tokens", 8).stdout.split()
    result = done("generate", bundle, "<5>", "--raw", "--stop", words[4])
    assert result.stdout.split() == words[: words.index(words[4])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("<5>", "--temperature", -1), "temperature is -1.0; it must be 0 (greedy), or from 1e-6 to 1e30"),
        (("<5>", "--max-new-tokens", 0), "max_new_tokens is 0; it must be at least 1"),
        (("",), "the prompt is empty"),
        ((), "no prompt; write one behind the bundle"),
        (("<5> " * 49,), "the prompt has 49 tokens, the bundle's capacity is 48: shorten the prompt"),
        (("<5>", "--threads", 0), "threads is 0; it must be at least 1"),
        (("<5>", "--threads", 5000), "threads is 5000; it must be at most 64 on this machine (--threads)"),
        (
            ("<5>", "--temperature", "1e39"),
            "temperature is 1e+39; it must be 0 (greedy), or from 1e-6 to 1e30",
        ),
        (("--prompts", "nowhere.jsonl"), "'nowhere.jsonl' cannot be read"),
    ],
)
def test_generate_refuses_bad_requests(arguments: tuple[Any, ...], message: str, bundle: Path) -> None:
    assert message in refused("generate", bundle, "--raw", *arguments)


def test_generate_needs_a_chat_template_or_raw(bundle: Path) -> None:
    assert "no chat template; pass the prompt as plain text (--raw)" in refused("generate", bundle, "<5>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<5>", "line 2 is not JSON"),
        ('{"text": "<5>"}', "line 2 has no prompt"),
        ('{"turns": []}', "line 2: turns is []; expected a list of strings"),
        ("[]", "line 2 has no prompt"),
        ('{"prompt": 5}', "line 2: the prompt is 5; expected a string"),
    ],
)
def test_generate_refuses_a_damaged_prompt_file(
    line: str, message: str, bundle: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "<5>"}}\n{line}\n')
    assert message in refused("generate", bundle, "--prompts", prompts, "--raw")


def test_one_prompt_that_is_too_long_leaves_the_others_answered(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "<5>"},
        {"prompt": "<5> " * 49},
        {"prompt": ""},
        {"turns": ["a", "b"]},
        {"prompt": "<7>"},
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    result = run("generate", bundle, "<3>", "--prompts", prompts, "--raw", "--json", "--max-new-tokens", 3)
    assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == ["<3>", "<5>", "<7>"]
    assert result.exit_code == 2
    refused, *why = result.stderr.splitlines()[-4:]
    assert refused == "error: 3 of 6 prompts were not answered:"
    for line, number, words in zip(why, (2, 3, 4), ("has 49 tokens", "is empty", "has 2 turns"), strict=True):
        assert line.startswith(f"  {str(prompts)!r}, line {number}: ")
        assert words in line
    assert why[-1].endswith(" (poss-export build --capacity)")


def test_prompts_come_from_standard_input(bundle: Path) -> None:
    arguments = ["generate", str(bundle), "--raw", "--json", "--prompts", "-", "--max-new-tokens", "2"]
    result = CliRunner().invoke(main, arguments, input='{"prompt": "<5>"}\n\n{"prompt": "<6>"}\n')
    assert result.exit_code == 0
    assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == ["<5>", "<6>"]

"""`poss-export generate` on a tiny bundle: answers, samples, and one clear message for every bad request."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import done, refused


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
        (("<5>", "--temperature", -1), "temperature is -1.0; it must be 0 (greedy) or at least 1e-6"),
        (("<5>", "--max-new-tokens", 0), "max_new_tokens is 0; it must be at least 1"),
        (("",), "the prompt is empty"),
        ((), "no prompt; write one behind the bundle"),
        (("<5> " * 49,), "the prompt has 49 tokens, the bundle's capacity is 48: shorten the prompt"),
        (("<5>", "--threads", 0), "threads is 0; it must be at least 1"),
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
        ("<5>", "line 2 has no prompt"),
        ('{"text": "<5>"}', "line 2 has no prompt"),
        ('{"turns": []}', "line 2 has no prompt"),
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

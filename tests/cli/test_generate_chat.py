"""`poss-export generate` in a chat template: messages, variables, control tokens."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from poss_export.manifest import TOKENIZER, describe_files, read_manifest, write_manifest
from poss_export.runtime.bundle import open_bundle
from poss_export.text import user_says
from tests.cli.command import done, refused, run

TEMPLATE = (
    "{% set marks = {'system': '<10>', 'user': '<11>', 'assistant': '<12>'} %}"
    "{% for m in messages %}{{ marks[m.role] + ' ' + m.content }} {% endfor %}"
    "{% if thinking is defined and not thinking %}<20> {% endif %}{{ date }}"
)
BRIEF = ("--json", "--max-new-tokens", 3)


@pytest.fixture
def chat(tiny_bundle: Path, changed: Callable[..., Path]) -> Path:
    return changed(text=replace(read_manifest(tiny_bundle).text, chat_template=TEMPLATE))


def answers(*arguments: object) -> list[list[int]]:
    lines = done("generate", *arguments, *BRIEF).stdout.splitlines()
    return [json.loads(line)["token_ids"] for line in lines]


def expected(chat: Path, *messages: Any, **variables: Any) -> list[int]:
    with open_bundle(chat) as bundle:
        return list(bundle.generate(messages, variables=variables, max_new_tokens=3).token_ids)


def test_a_system_message_is_in_front_of_every_prompt(chat: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"turns": ["<6>"]}))
    system = {"role": "system", "content": "<30> <31>"}
    found = answers(chat, "<5>", "--prompts", file, "--system", "<30> <31>")
    assert found == [expected(chat, system, user_says("<5>")), expected(chat, system, user_says("<6>"))]


def test_messages_of_a_file(chat: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    system = {"role": "system", "content": "<30>"}
    said = [system, user_says("<5>"), {"role": "assistant", "content": "<6>"}, user_says("<7>")]
    file.write_text(json.dumps({"messages": said}))
    assert answers(chat, "--prompts", file) == [expected(chat, *said)]
    message = refused("generate", chat, "--prompts", file, "--system", "<31>")
    assert message.endswith("line 1 has a system message of its own; leave one out (--system)")
    assert "has messages before its turn, which take a chat template" in refused(
        "generate", chat, "--prompts", file, "--raw"
    )


def test_template_variables(chat: Path) -> None:
    found = answers(
        chat, "<5>", "--template-variable", "thinking=false", "--template-variable", "date=<40> <41>"
    )
    assert found == [expected(chat, user_says("<5>"), thinking=False, date="<40> <41>")]
    assert found != answers(chat, "<5>")


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("thinking", "the template variable is 'thinking'; expected NAME=VALUE (--template-variable)"),
        ("=1", "the template variable is '=1'; expected NAME=VALUE (--template-variable)"),
        (
            "thinking=False",
            "template variable thinking is False; write true, false or null (--template-variable)",
        ),
        ("thinkin=false", "has no variable 'thinkin'; it reads date, thinking (--template-variable)"),
        ("messages=[]", "has no variable 'messages'; it reads date, thinking"),
        ("tools=[]", "has no variable 'tools'; it reads date, thinking"),
    ],
)
def test_variables_that_would_do_nothing_are_refused(variable: str, message: str, chat: Path) -> None:
    assert message in refused("generate", chat, "<5>", "--template-variable", variable)


def test_variables_go_with_a_template(chat: Path) -> None:
    message = refused("generate", chat, "<5>", "--raw", "--template-variable", "thinking=false")
    assert message.startswith("variables (thinking) are of the chat template, which plain text goes without")
    assert "take a chat template" in refused("generate", chat, "<5>", "--raw", "--system", "<6>")


def test_a_dialogue_that_the_template_refuses_leaves_the_others_answered(chat: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    tool = {"messages": [{"role": "tool", "content": "<5>"}, user_says("<6>")]}
    file.write_text("\n".join(map(json.dumps, [tool, {"prompt": "<5>"}])))
    result = run("generate", chat, "--prompts", file, *BRIEF)
    assert [json.loads(line)["prompt"] for line in result.stdout.splitlines()] == ["<5>"]
    assert result.exit_code == 2
    assert "line 1: the target's chat template fails on this dialogue (" in result.stderr


def test_control_tokens_are_text_unless_they_are_let_through(chat: Path) -> None:
    """The tokenizer of this bundle has one token a word, so the text of a control token has no other ids."""
    manifest, tokenizer = read_manifest(chat), Tokenizer.from_file(str(chat / TOKENIZER))
    tokenizer.add_special_tokens(["<2>"])
    tokenizer.save(str(chat / TOKENIZER))
    write_manifest(chat, replace(manifest, files=manifest.files | describe_files(chat, [TOKENIZER])))
    message = refused("generate", chat, "<5> <2>")
    assert message.startswith("the tokenizer has no other ids for the text '<2>' than the control token")
    assert message.endswith("(--control-tokens)")
    assert len(answers(chat, "<5> <2>", "--control-tokens")) == 1

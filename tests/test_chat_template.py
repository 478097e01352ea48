"""Chat templates, rendered as transformers renders them, and what must be refused."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from poss_export.chat_template import ChatTemplate, as_plain
from poss_export.errors import InputError
from poss_export.text import Message, user_says
from tests.fixtures.chat_templates import CONSTRUCTS, DIALOGUES, SAYS, SPECIAL, TOOL, VARIABLES


@pytest.fixture(scope="module")
def theirs() -> Any:
    fast: Any = PreTrainedTokenizerFast  # half annotated
    return fast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), **SPECIAL)


def rendered(source: str, dialogue: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
    """Return our text, or None where we refuse."""
    try:
        return ChatTemplate(source).render(as_plain(dialogue), {**SPECIAL, **variables})
    except InputError:
        return None


def by_transformers(
    theirs: Any, source: str, dialogue: Sequence[Message], variables: Mapping[str, Any]
) -> str | None:
    try:
        return str(
            theirs.apply_chat_template(
                list(dialogue), chat_template=source, tokenize=False, add_generation_prompt=True, **variables
            )
        )
    except Exception:
        return None


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_constructs_are_rendered_as_by_transformers(construct: str, theirs: Any) -> None:
    source, compared = CONSTRUCTS[construct], 0
    for (said, dialogue), (given, variables) in product(DIALOGUES.items(), VARIABLES.items()):
        ours = rendered(source, dialogue, variables)
        assert ours == by_transformers(theirs, source, dialogue, variables), (said, given)
        compared += ours is not None
    assert compared >= len(VARIABLES)  # not only failures of both


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this dialogue: roles must alternate"),
        (
            "{{ 1 / 0 }}",
            r"fails on this dialogue \(ZeroDivisionError: division by zero\); does it have every",
        ),
        ("{{ messages[0].nothing.inner }}", r"fails on this dialogue \(UndefinedError: 'dict object' has no"),
        ("{{ messages[9].content }}", "fails on this dialogue"),
        ("{{ 'a' + 1 }}", r"fails on this dialogue \(TypeError"),
        ("{{ messages.append(1) }}", "fails on this dialogue"),
        ("{{ ''.__class__.__mro__ }}", "fails on this dialogue"),
        ("{{ messages.__class__() }}", r"fails on this dialogue \(SecurityError"),
        ("{{ dict.__class__() }}", r"fails on this dialogue \(SecurityError"),
        ("{{ namespace(_x=1) }}", r"fails on this dialogue \(SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__x = 1 %}", r"fails on this dialogue \(SecurityError"),
        ("{{ range(999999999) }}", "fails on this dialogue"),
        (
            "{{ messages | nothing }}",
            r"not valid \(TemplateAssertionError: No filter named 'nothing'., line 1\)",
        ),
        ("{% for m in messages %}\n{{ m", r"not valid \(TemplateSyntaxError: .*, line 2\)"),
        ("{% generation %}", "not valid"),
        ("{% include 'other' %}", "fails on this dialogue"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"fails on this dialogue \(RecursionError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", r"not valid \(RecursionError"),
    ],
)
def test_failures_are_one_message(source: str, message: str) -> None:
    with pytest.raises(InputError, match=f"chat template .*{message}"):
        ChatTemplate(source).render([user_says("Why?")], {})


def test_only_what_json_has_reaches_a_template() -> None:
    class Text(str):
        def escape(self) -> str:
            raise AssertionError("a template called it")

    source = "{{ messages[0].content.escape is defined }}{{ messages[0].content }}"
    said = as_plain([{"role": "user", "content": Text("a")}])
    assert ChatTemplate(source).render(said, {}) == "Falsea"
    with pytest.raises(InputError, match="hold what JSON has; Object of type PosixPath is not JSON"):
        as_plain([{"role": "user", "content": Path()}])
    with pytest.raises(InputError, match="a message is 'text'; expected an object"):
        ChatTemplate("").render(as_plain(["text"]), {})


def test_variables_are_those_that_the_template_reads() -> None:
    template = ChatTemplate(SAYS + "{% if enable_thinking %}{{ date }}{% endif %}{{ bos_token }}{{ tools }}")
    template.check_variables({"enable_thinking": True, "tools": [TOOL], "bos_token": ""}, SPECIAL)
    for name in ("enable_thinkin", "messages", "add_generation_prompt", "strftime_now"):
        with pytest.raises(
            InputError, match=f"no variable '{name}'; it reads date, enable_thinking, tools$"
        ) as error:
            template.check_variables({name: 1}, SPECIAL)
        assert error.value.options == ("variables",)
    for value in ("now", {"name": "now"}, ["now"]):
        with pytest.raises(InputError, match=r"tools are .*; expected a list of objects"):
            template.check_variables({"tools": value}, {})
    with pytest.raises(InputError, match="no variable 'x'; it reads none"):
        ChatTemplate(SAYS).check_variables({"x": 1}, {})


def test_literals_are_what_the_template_writes() -> None:
    literals = ChatTemplate("<|a|>{{ '<|b|>' ~ c }}{# <|d|> #}{% if x == '<|e|>' %}{% endif %}").literals
    assert sorted(literals.split("\0")) == ["<|a|>", "<|b|>", "<|e|>"]

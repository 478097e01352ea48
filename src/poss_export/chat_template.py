"""Chat templates (Jinja) in the world that transformers gives them: its names, filters, tags and defaults."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from poss_export.errors import InputError, PromptError
from poss_export.text import Message

_OURS = ("messages", "add_generation_prompt")  # names of a template that no variable may take
_REASONING = ("reasoning_content", "thinking", "reasoning")  # what an answer's reasoning is called


class ChatTemplate:
    """A compiled template. It comes with a checkpoint, so it is data from elsewhere and runs in a sandbox."""

    def __init__(self, source: str) -> None:
        """Compile the template.

        Raises:
            InputError: it is not valid Jinja.
        """
        self._environment = _environment()
        try:
            self._tree = self._environment.parse(source)
            self._compiled = self._environment.from_string(source)
        except Exception as error:  # deep nesting fails with other errors than jinja's
            raise InputError(
                f"the target's chat template is not valid ({_in_words(error)}); mend it, and build again"
            ) from error

    @cached_property
    def literals(self) -> str:
        """The text and the strings that the template itself writes, NUL between any two."""
        data = {node.data for node in self._tree.find_all(nodes.TemplateData)}
        strings = {node.value for node in self._tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return "\0".join(sorted(data | strings))

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that the template reads from outside: variables, special tokens and our own."""
        return frozenset(jinja2.meta.find_undeclared_variables(self._tree))

    def check_variables(self, variables: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """Raise InputError where the template would not read a variable; `known` are names it is given."""
        given = (*_OURS, *known, *self._environment.globals)
        readable = sorted(self.names.difference(given))
        for name in variables:
            if name in _OURS or name not in self.names:
                raise InputError(
                    f"the target's chat template has no variable {name!r}; "
                    f"it reads {', '.join(readable) or 'none'}",
                    options=("variables",),
                )
        for name in ("tools", "documents"):
            value = variables.get(name)
            if value is not None and not (
                isinstance(value, list) and all(isinstance(v, dict) for v in value)
            ):
                raise InputError(f"{name} are {value!r}; expected a list of objects", options=("variables",))

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Return the text of a dialogue that the assistant answers next; all values are plain (`as_plain`).

        `variables` are special tokens and whatever else the template is to see, such as `tools`.

        Raises:
            PromptError: the template refuses the dialogue or fails on it.
        """
        seen = {"tools": None, "documents": None, **variables}
        dialogue = [_as_templates_expect(message) for message in messages]
        try:
            return self._compiled.render(messages=dialogue, add_generation_prompt=True, **seen)
        except _RefusedError as error:
            raise PromptError(f"the target's chat template refuses this dialogue: {error}") from error
        except Exception as error:  # the template's own code, which can fail in any way
            raise PromptError(
                f"the target's chat template fails on this dialogue ({_in_words(error)}); "
                "does it have every role, field and variable that the template reads?"
            ) from error


def as_plain(values: Any) -> Any:
    """Return a copy of plain JSON values; others have methods that no template should call.

    Raises:
        InputError: JSON has no such value.
    """
    try:
        return json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages and template variables hold what JSON has; {error}") from error


def _as_templates_expect(message: Any) -> dict[str, Any]:
    """Leave out what is None, which templates would write, and give reasoning every name it is read by."""
    if not isinstance(message, dict):
        raise PromptError(f"a message is {message!r}; expected an object with a role and content")
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _in_words(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"{type(error).__name__}: {error}" + ("" if line is None else f", line {line}")


class _RefusedError(TemplateError):
    """A template called `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what the assistant wrote. It marks text for training, and changes none."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own annotation

    def parse(self, parser: Parser) -> nodes.Node:
        # A call block, not the bare body: names that are set inside end with it, as they do in transformers.
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict`, without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # jinja2's own trick, so that namespace(self=...) works.
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name that begins with an underscore, as {name!r} does")


def _raise_exception(message: str) -> None:
    raise _RefusedError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes HTML
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment

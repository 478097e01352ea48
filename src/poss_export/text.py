"""Text in and out: the tokenizer, the chat template, and the ids that end an answer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poss_export.control_tokens import ControlTokens, strings
from poss_export.errors import BundleError, InputError, PromptError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from poss_export.chat_template import ChatTemplate

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}


def user_says(content: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": content}


_MARKER = "\x00"  # stands for what somebody says; no template writes it
_MARKED = user_says(_MARKER)
_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_AS_TEXT = "control tokens as text"
# What a template is tried on, beside the user's message: messages before it, and template variables.
_TRIED: Mapping[str, tuple[Sequence[Message], Mapping[str, Any]]] = {
    "system messages": ([{"role": "system", "content": "Be brief."}], {}),
    "several turns": ([user_says("Hello."), {"role": "assistant", "content": "Hello!"}], {}),
    "tools": ([], {"tools": [_TOOL]}),
}


@dataclass(frozen=True)
class TextConfig:
    """What surrounds the tokenizer: stop ids, the chat template (Jinja) and what it knows.

    `tool_template` is used instead where the dialogue has tools. `refused` says what of "user messages",
    "system messages", "several turns", "tools" and "control tokens as text" the template
    does not write, and why.
    """

    stop_ids: tuple[int, ...]
    chat_template: str | None = None
    tool_template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()  # ("bos_token", "<s>"): names a template may use
    chat_control_tokens: tuple[str, ...] | None = None  # None: those that the template writes
    refused: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TextConfig":
        """Read what `to_dict` wrote, after a round trip through JSON.

        Raises:
            BundleError: an earlier release wrote it, whose tokenizer put no token in front.
        """
        if values.get("bos_id") is not None:
            raise BundleError("the bundle's tokenizer is that of an earlier release; rebuild the bundle")
        control = values.get("chat_control_tokens")
        return cls(
            stop_ids=tuple(values["stop_ids"]),
            chat_template=values["chat_template"],
            tool_template=values.get("tool_template"),
            special_tokens=tuple((name, text) for name, text in values["special_tokens"]),
            chat_control_tokens=None if control is None else tuple(control),
            refused=tuple((what, why) for what, why in values.get("refused", ())),
        )


class Text:
    """Encode prompts and decode tokens; `tokenizer_json` is the text of a tokenizer.json."""

    def __init__(self, tokenizer_json: str, config: TextConfig) -> None:
        """Keep the parts; parsing waits for the first use."""
        self.tokenizer_json = tokenizer_json
        self.config = config

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer itself."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer_json)

    @cached_property
    def hidden_ids(self) -> dict[str, int]:
        """The ids of the special tokens, which answers do not show, by their names."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    @cached_property
    def _without_added_tokens(self) -> "Tokenizer":
        """The tokenizer to which everything is plain text."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps({**json.loads(self.tokenizer_json), "added_tokens": []}))

    @cached_property
    def _template(self) -> "ChatTemplate":
        from poss_export.chat_template import ChatTemplate

        if self.config.chat_template is None:
            raise InputError(
                "this target has no chat template; pass the prompt as plain text", options=("raw",)
            )
        return ChatTemplate(self.config.chat_template)

    @cached_property
    def _tool_template(self) -> "ChatTemplate":
        from poss_export.chat_template import ChatTemplate

        other = self.config.tool_template
        return self._template if other is None else ChatTemplate(other)

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a plain prompt, with what the target wants around it, such as bos in front.

        Names of control tokens in it are those tokens.
        """
        ids: list[int] = self.tokenizer.encode(prompt).ids
        return ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] | None = None,
        *,
        control_tokens: bool = False,
    ) -> list[int]:
        """Return the ids of a dialogue that the assistant answers next.

        Args:
            messages: objects with a role and content, and whatever else the template reads.
            variables: what the template reads beside them, such as `tools` or `enable_thinking`.
            control_tokens: let names of control tokens in messages and variables be those tokens, so that a
                user's text can end its turn and begin another; else they are text.

        Raises:
            PromptError: the template refuses the dialogue or leaves its system message out; a control token
                cannot be encoded as text.
            InputError: there is no template, or it does not read a variable.
        """
        from poss_export.chat_template import as_plain

        said, seen = as_plain([*messages]), as_plain(dict(variables or {}))
        template = self._template if seen.get("tools") is None else self._tool_template
        template.check_variables(seen, dict(self.config.special_tokens))
        refused = dict(self.config.refused)
        if "system messages" in refused and any(message.get("role") == "system" for message in messages):
            raise PromptError(
                f"the target's chat template writes no system message "
                f"({refused['system messages']}); leave it out",
                options=("system",),
            )
        if control_tokens:
            return self._plain(self._render(template, said, seen))
        control = self._control_tokens(template)
        if _AS_TEXT in refused and control.found_in([said, seen], in_any_case=True):
            raise PromptError(
                f"the target's chat template writes no {_AS_TEXT} ({refused[_AS_TEXT]}); leave them out, "
                "or let them through",
                options=("control_tokens",),
            )
        self._refuse_disguised([said, seen], control)
        if not control.found_in([said, seen]):
            return self._plain(self._render(template, said, seen))
        try:
            marked = self._render(template, control.mark(said), control.mark(seen))
        except RecursionError as error:
            raise PromptError("the prompt is nested too deep; give simpler messages") from error
        return self._encode_pieces(control.pieces(marked))

    def _control_tokens(self, template: "ChatTemplate") -> ControlTokens:
        """Return the special tokens, and those others that the template writes, but for white space."""
        written, listed = template.literals, self.config.chat_control_tokens
        return ControlTokens(
            token.content
            for token in self.tokenizer.get_added_tokens_decoder().values()
            if token.special
            or (
                token.content in listed
                if listed is not None
                else token.content in written and not token.content.isspace()
            )
        )

    def _refuse_disguised(self, values: Any, control: ControlTokens) -> None:
        """Raise InputError where a text becomes a control token only as the tokenizer normalises it."""
        added = self.tokenizer.get_added_tokens_decoder()
        normalised = {i for i, token in added.items() if token.normalized and control.found_in(token.content)}
        if self.tokenizer.normalizer is None or not normalised:
            return
        for text in (text for string in strings(values) for text in control.between(string)):
            for found in normalised.intersection(self._plain(text)):
                if found not in _encode(self._without_added_tokens, text):  # as an unknown character may be
                    raise PromptError(
                        f"the tokenizer reads the control token {added[found].content!r} in a text that "
                        "spells it otherwise; leave it out, or let control tokens through",
                        options=("control_tokens",),
                    )

    def _encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        ids = list[int]()
        for number, (piece, marked) in enumerate(pieces):
            tokenizer = self._without_added_tokens if marked else self.tokenizer
            found = _encode_behind_text(tokenizer, piece) if number else _encode(tokenizer, piece)
            if marked and self.tokenizer.token_to_id(piece) in found:
                raise PromptError(
                    f"the tokenizer has no other ids for the text {piece!r} than the control token; "
                    "leave it out, or let control tokens through",
                    options=("control_tokens",),
                )
            ids += found
        return ids

    def _plain(self, text: str) -> list[int]:
        return _encode(self.tokenizer, text)

    def encode_user_opening(self, words: str = "", before: Sequence[Message] = ()) -> list[int]:
        """Return the ids of a dialogue whose user speaks after messages, and has said `words` so far."""
        return self._plain((self._opening_after(before) if before else self._user_opening) + words)

    @cached_property
    def _user_opening(self) -> str:
        return self._opening_after(())

    def _opening_after(self, before: Sequence[Message]) -> str:
        opening, marker, _ = self._render(self._template, [*before, _MARKED], {}).partition(_MARKER)
        if not marker:
            raise InputError("the target's chat template changes what the user says; give prompts instead")
        return opening

    def _render(
        self, template: "ChatTemplate", messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> str:
        return template.render(messages, {**dict(self.config.special_tokens), **variables})

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def tried(self) -> "Text":
        """Return the same with `config.refused`: the template is tried on dialogues of every kind."""
        if self.config.chat_template is None:
            return self
        refused = {}
        try:
            plain = self._render(self._template, [_MARKED], {})
            for what, (before, variables) in _TRIED.items():
                if why := self._why_refused(plain, before, variables):
                    refused[what] = why
            if self._lets_through(plain):
                refused[_AS_TEXT] = "it changes how they are marked"
        except InputError as error:
            refused["user messages"] = str(error)
        return Text(self.tokenizer_json, replace(self.config, refused=tuple(refused.items())))

    def _why_refused(self, plain: str, before: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
        """Return why the template writes what stands before the user's message, or None where it does."""
        try:
            template = self._tool_template if variables else self._template
            rendered = self._render(template, [*before, _MARKED], variables)
        except InputError as error:
            return str(error)
        return "it leaves them out" if rendered == plain else None

    def _lets_through(self, plain: str) -> bool:
        """Whether the template undoes marks, as it cuts letters off or changes their case."""
        control = self._control_tokens(self._template)
        said = user_says(control.mark(control.worst_case))
        return control.count(self._render(self._template, [said], {})) > control.count(plain)


def _encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _encode_behind_text(tokenizer: "Tokenizer", piece: str) -> list[int]:
    """Return the ids of a piece that is not the first."""
    # A line break before it keeps a tokenizer from putting the space there that it puts in front of a text.
    line_break = _encode(tokenizer, "\n")
    ids = _encode(tokenizer, f"\n{piece}")
    return ids[len(line_break) :] if ids[: len(line_break)] == line_break else _encode(tokenizer, piece)

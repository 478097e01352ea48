"""Text in and out: the tokenizer, the chat template, and the ids that end an answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poss_export.errors import InputError

if TYPE_CHECKING:
    import jinja2
    from tokenizers import Tokenizer

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


def user_says(content: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": content}


_MARKER = "\x00"  # stands for what a user says; no template writes it


@dataclass(frozen=True)
class TextConfig:
    """What surrounds the tokenizer: stop ids, the ids of special tokens, the chat template (Jinja)."""

    stop_ids: tuple[int, ...]
    bos_id: int | None = None  # put in front of every plain prompt; a chat template writes its own
    chat_template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()  # ("bos_token", "<s>"): names a template may use

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TextConfig":
        """Read what `to_dict` wrote, after a round trip through JSON."""
        return cls(
            stop_ids=tuple(values["stop_ids"]),
            bos_id=values["bos_id"],
            chat_template=values["chat_template"],
            special_tokens=tuple((name, text) for name, text in values["special_tokens"]),
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
    def _template(self) -> "jinja2.Template":
        # A template comes with a checkpoint: it is data from elsewhere, so it runs in the sandbox.
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.config.chat_template is None:
            raise InputError(
                "this target has no chat template; pass the prompt as plain text", options=("raw",)
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_template_error
        return environment.from_string(self.config.chat_template)

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a plain prompt, with the target's bos in front if it wants one."""
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids if self.config.bos_id is None else [self.config.bos_id, *ids]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a dialogue that the assistant answers next."""
        ids: list[int] = self.tokenizer.encode(self._render(messages), add_special_tokens=False).ids
        return ids

    def encode_user_opening(self, words: str = "") -> list[int]:
        """Return the ids of a dialogue whose user is speaking and has said `words` so far."""
        ids: list[int] = self.tokenizer.encode(self._user_opening + words, add_special_tokens=False).ids
        return ids

    @cached_property
    def _user_opening(self) -> str:
        opening, marker, _ = self._render([user_says(_MARKER)]).partition(_MARKER)
        if not marker:
            raise InputError("the target's chat template changes what the user says; give prompts instead")
        return opening

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(
            messages=messages, add_generation_prompt=True, **dict(self.config.special_tokens)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _raise_template_error(message: str) -> None:
    raise InputError(f"the target's chat template refuses this dialogue: {message}")

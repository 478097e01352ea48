"""The JSON of answers: whole ones and chunks of streams, of chats and of plain completions."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from poss_export.runtime.generation import Generation

Kind = Literal["chat", "text"]
Values = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How the answers to one request are written."""

    kind: Kind
    model: str
    fingerprint: str  # of the graphs: where it is the same, a seed gives the same answer
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Generation], usage: Values) -> Values:
        """Return the body of a response."""
        kind = "chat.completion" if self.kind == "chat" else "text_completion"
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        return {**self._head(kind), "choices": choices, "usage": usage}

    def opening(self, number: int) -> list[Values]:
        """Return the chunks in front of an answer's text: a chat says whose it is."""
        if self.kind == "text":
            return []
        return [self._chunk(number, {"role": "assistant", "content": ""})]

    def piece(self, number: int, text: str) -> Values:
        """Return the chunk of a piece of an answer."""
        return self._chunk(number, {"content": text} if self.kind == "chat" else text)

    def closing(self, number: int, answer: Generation) -> Values:
        """Return the last chunk of an answer."""
        return self._chunk(number, {} if self.kind == "chat" else "", _reason(answer))

    def usage(self, usage: Values) -> Values:
        """Return the chunk behind all answers."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage}

    def _head(self, kind: str) -> Values:
        return {
            "id": f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _choice(self, number: int, answer: Generation) -> Values:
        said: Values = {"text": answer.text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        return {"index": number, **said, "logprobs": None, "finish_reason": _reason(answer)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _chunk(self, number: int, said: Any, reason: str | None = None) -> Values:
        name = "delta" if self.kind == "chat" else "text"
        choice = {"index": number, name: said, "logprobs": None, "finish_reason": reason}
        return {**self._head(self._chunk_kind), "choices": [choice]}


def usage_of(prompt_tokens: int, answers: Sequence[Generation]) -> Values:
    """Return the tokens of a request; of those proposed, the target accepted some and rejected the others."""
    tokens = sum(answer.tokens for answer in answers)
    drafted = sum(answer.summary.num_draft_tokens for answer in answers)
    accepted = sum(answer.summary.num_accepted_draft_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }


def _reason(answer: Generation) -> str:
    return "stop" if answer.finish_reason in ("stop", "stop_string") else "length"

"""From emitted tokens to text that may be shown, and when to stop."""

from collections.abc import Sequence
from typing import Literal

from poss_export.errors import InputError
from poss_export.runtime.detokenizer import UNFINISHED, Detokenizer
from poss_export.text import Text

FinishReason = Literal["stop", "stop_string", "length", "capacity"]


class Transcript:
    """The answer so far.

    `add` takes tokens in the order they are emitted and returns the text that they make certain:
    neither half a character nor anything that may become part of a stop string. Tokens after the one
    that ends the answer are left out; that one is in `token_ids`, and its text is not in `text`.
    """

    def __init__(self, text: Text, max_new_tokens: int, stop_strings: Sequence[str]) -> None:
        """Begin an empty answer.

        Raises:
            InputError: `max_new_tokens` is below 1, or a stop string is empty or holds a control token and
                other text; one that is a control token ends the answer as the target's stop tokens do.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        if "" in stop_strings:
            raise InputError("a stop string is empty; leave it out, or give the text to stop at")
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        hidden = text.hidden_ids
        self._stop_ids = {*text.config.stop_ids, *(hidden[stop] for stop in stop_strings if stop in hidden)}
        self._max_new_tokens = max_new_tokens
        self._stop_strings = [stop for stop in stop_strings if stop not in hidden]
        for stop in self._stop_strings:
            if found := [token for token in hidden if token in stop]:
                raise InputError(
                    f"the stop string {stop!r} holds the control token {found[0]!r}, which no answer shows: "
                    "give the token alone, or the text without it",
                    options=("stop",),
                )
        self._decoder = Detokenizer(text)
        self._held = ""  # decoded, but perhaps the beginning of a stop string

    def add(self, tokens: Sequence[int]) -> str:
        """Return the text that `tokens` make certain; stops at the one that sets `finish_reason`."""
        shown = len(self.text)
        for token in tokens:
            self._add_token(token)
            if self.finish_reason is not None:
                break
        return self.text[shown:]

    def finish(self) -> str:
        """End the answer, at the latest by `capacity`, and return the text still held back."""
        shown = len(self.text)
        if self.finish_reason != "stop_string":
            self._show(self._decoder.rest())  # an unfinished character is shown as �
        if self.finish_reason is None:
            self.finish_reason = "capacity"
        if self.finish_reason != "stop_string":
            self.text += self._held
        return self.text[shown:]

    def _add_token(self, token: int) -> None:
        self.token_ids.append(token)
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return
        if len(self.token_ids) == self._max_new_tokens:
            self.finish_reason = "length"  # unless the text now ends at a stop string
        self._show(self._decoder.add(token))
        if self._stop_strings and self.finish_reason != "stop_string":
            rest = self._decoder.rest()  # certain if the answer ends here
            whole = not rest.endswith(UNFINISHED)
            if whole and any(stop in self._held + rest for stop in self._stop_strings):
                self._show(rest)

    def _show(self, new: str) -> None:
        """Move what is certain of the held text and `new` to `text`."""
        held = self._held + new
        found = [at for stop in self._stop_strings if (at := held.find(stop)) >= 0]
        if found:
            self.finish_reason = "stop_string"
            certain = min(found)
        else:
            certain = len(held) - max((_overlap(held, stop) for stop in self._stop_strings), default=0)
        self.text += held[:certain]
        self._held = held[certain:]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

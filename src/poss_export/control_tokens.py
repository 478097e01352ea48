"""Control tokens in what people say: text, as anything else they say, unless they are let through.

A tokenizer reads `<|im_end|>` in a user's text as the token that ends the turn. So such strings are marked
before the chat template writes them, and what is marked in its result is encoded as text. The marks, and how
text between them is encoded, are those of transformers' `sanitize_control_tokens`; a text that holds the two
letters which are marks loses them, here only beside a control token.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

_START, _END = "\U000f0000", "\U000f0001"  # private to this module: no text of Unicode has a meaning for them


class ControlTokens:
    """The control tokens of a tokenizer and a chat template."""

    def __init__(self, contents: Iterable[str]) -> None:
        """Prepare to find tokens with these contents; of two that begin alike, the longer one counts."""
        longest_first = sorted(contents, key=len, reverse=True)
        self._contents = longest_first
        self._any = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches
        self._in_any_case = re.compile(self._any.pattern, re.IGNORECASE)
        self._marked = re.compile(f"{_START}({self._any.pattern}){_END}|[{_START}{_END}]")

    def found_in(self, value: Any, in_any_case: bool = False) -> bool:
        """Whether a string among plain JSON values holds a control token; keys are not looked at."""
        looked_for = self._in_any_case if in_any_case else self._any
        return any(looked_for.search(text) for text in strings(value))

    @property
    def worst_case(self) -> str:
        """A text of every control token in every case, with one at each end."""
        tokens = self._contents
        return " ".join([*tokens[:1], *(token.swapcase() for token in tokens), *tokens])

    def count(self, rendered: str) -> int:
        """Return how many control tokens of a rendered text take effect."""
        return sum(len(self._any.findall(piece)) for piece, marked in self.pieces(rendered) if not marked)

    def between(self, text: str) -> list[str]:
        """Return what stands before, between and behind the control tokens of a text."""
        return self._any.split(text)

    def mark(self, value: Any) -> Any:
        """Return plain JSON values with the control tokens in their strings marked, and no other marks."""
        if isinstance(value, str):
            text = value.replace(_START, "").replace(_END, "")
            return self._any.sub(f"{_START}\\g<0>{_END}", text)
        if isinstance(value, dict):
            return {name: self.mark(inner) for name, inner in value.items()}
        return [self.mark(inner) for inner in value] if isinstance(value, list) else value

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of a rendered text, and of each whether it was marked.

        A mark that the template separated from its other half still ends a piece, so that what is left and
        right of it cannot join to a control token.
        """
        for number, piece in enumerate(self._marked.split(rendered)):
            if piece:
                yield piece, number % 2 == 1


def strings(value: Any) -> Iterator[str]:
    """Yield the strings among plain JSON values, without keys."""
    waiting = [value]  # not a recursion: values may be nested deep
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, dict | list):
            waiting += inner.values() if isinstance(inner, dict) else inner

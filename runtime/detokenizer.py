"""The text of an answer as its tokens come, whatever the tokenizer's decoder."""

import re

from poss_export.text import Text

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # how vocabularies with byte fallback write a byte
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders show half a character as


class Detokenizer:
    """Takes tokens one by one; the text that `add` returned and `rest` are what all of them decode to.

    A decoder joins tokens in its own way: it may drop the first space of all, or turn a whole run of byte
    tokens into replacement characters because of its last byte. So new tokens are decoded behind some whose
    text is known, and a run of bytes when it is over.
    """

    def __init__(self, text: Text) -> None:
        """Begin with no tokens."""
        self._text = text
        self._known: list[int] = []  # the last tokens whose text is certain: they are not blank
        self._new: list[int] = []  # tokens behind these
        self._in_bytes = False

    def add(self, token: int) -> str:
        """Return the text that this token makes certain: no later one changes it."""
        self._new.append(token)
        if self._is_byte(token):
            self._in_bytes = True
        elif self._in_bytes and self._text.decode([token]):  # a special token has no text, and ends no run
            self._in_bytes = False
        text = "" if self._in_bytes else self.rest()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._known = self._new if self._text.decode(self._new).strip() else self._known + self._new
        self._new = []
        return text

    def rest(self) -> str:
        """Return what all tokens decode to behind the text that is certain."""
        if not self._new:
            return ""
        return self._text.decode(self._known + self._new)[len(self._text.decode(self._known)) :]

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._text.tokenizer.id_to_token(token) or "") is not None

"""Candidates without a network: what followed the last time that the text ended as it ends now.

A suffix automaton recognises every piece of a text, and grows with it in amortised constant time a token
(Blumer et al., 1985). Its match is the longest there is, so there is no n to choose as with n-grams.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DEEPEST = 16  # tokens of a continuation
_RENEWED = 16  # pieces that learn of each token as their newest end; shorter ones keep an older


@dataclass
class Match:
    """The longest end of a text that an automaton knows: its state, and how many tokens it is long."""

    state: int = 0
    length: int = 0


class SuffixAutomaton:
    """All pieces of a growing text; a state stands for pieces that have the same ends in it.

    `match` is the longest piece at the end of the text that occurs earlier in it too.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        """Read `tokens`."""
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]  # state: token: state
        self._shorter = [-1]  # state of the longest piece at the end of these that has other ends too
        self._length = [0]  # of the longest piece of a state
        self._end = [0]  # tokens of the text up to the newest known end of a state's pieces
        self._last = 0  # the state of the whole text
        self.match = Match()
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Read one more token."""
        self.text.append(token)
        new, state = self._state({}, len(self.text), len(self.text)), self._last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._shorter[state]
        self._shorter[new] = self._split(state, token) if state >= 0 else 0
        self._renew(self._shorter[self._last])
        self._last = new
        shorter = self._shorter[new]
        self.match = Match(shorter, self._length[shorter])

    def follow(self, match: Match, token: int) -> Match:
        """Return the longest known end of a text that goes on from `match` with `token`."""
        state, length = match.state, match.length
        while state >= 0 and token not in self._next[state]:
            state = self._shorter[state]
            length = self._length[state] if state >= 0 else 0
        return Match(self._next[state][token], length + 1) if state >= 0 else Match()

    def continuation(self, match: Match, most: int = DEEPEST) -> list[int]:
        """Return what came after the newest earlier occurrence of `match`, at most so many tokens."""
        if match.length == 0:
            return []
        end = self._end[match.state]
        return self.text[end : end + most]

    def _state(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._shorter.append(0)
        self._length.append(length)
        self._end.append(end)
        return len(self._length) - 1

    def _split(self, state: int, token: int) -> int:
        """Return a state of just the pieces of `state` with `token` behind; others with their ends part."""
        old = self._next[state][token]
        if self._length[old] == self._length[state] + 1:
            return old
        new = self._state(dict(self._next[old]), self._length[state] + 1, self._end[old])
        self._shorter[new], self._shorter[old] = self._shorter[old], new
        while state >= 0 and self._next[state].get(token) == old:
            self._next[state][token] = new
            state = self._shorter[state]
        return new

    def _renew(self, state: int) -> None:
        """Note for the pieces that ended before the newest token, the longest first, that they did."""
        end = len(self.text) - 1
        for _ in range(_RENEWED):
            if state <= 0:
                return
            self._end[state] = end
            state = self._shorter[state]


# Of tokens behind an earlier occurrence, the share that was right, by the length of the match up to them: of
# 50,000 to 3,000 tokens a length, in answers of SmolLM2-135M to its own questions (docs/planning.md). A token
# further behind is as likely as one at once behind a match that is longer by those between, so positions need
# no numbers of their own.
_LENGTHS = (1, 2, 3, 4, 6, 10, 20)  # longest match of each class but the last
_RIGHT = (0.18, 0.53, 0.60, 0.68, 0.73, 0.81, 0.88, 0.92)
_WORTH = 8.0  # tokens of an answer that the prior counts as


@dataclass(frozen=True)
class Continuation:
    """Tokens that followed an earlier occurrence of the end of the text, and how long that end was."""

    tokens: list[int]
    match: int  # tokens


class Lookup:
    """What the text so far, and a corpus, say of its continuation; and how often such words held."""

    def __init__(self, corpus: SuffixAutomaton | None = None) -> None:
        """Start with an empty text; a corpus is only read, and serves many texts."""
        self._text, self._corpus, self._behind = SuffixAutomaton(), corpus, Match()
        self._seen = [_WORTH] * len(_RIGHT)
        self._right = [_WORTH * share for share in _RIGHT]
        self._found = self._look_behind(())

    def extend(self, tokens: Iterable[int]) -> None:
        """Read on; what was proposed for these tokens is judged by them."""
        read = list(tokens)
        for proposed in self._found:
            self._learn(proposed, read)
        for token in read:
            self._text.add(token)
            if self._corpus is not None:
                self._behind = self._corpus.follow(self._behind, token)
        self._found = self._look_behind(())

    def continuations(self, path: Sequence[int] = ()) -> list[Continuation]:
        """Return what may follow the text and then the tokens of `path`, at most one of each source."""
        return self._look_behind(path) if path else self._found

    def _look_behind(self, path: Sequence[int]) -> list[Continuation]:
        sources = [(self._text, self._text.match)]
        if self._corpus is not None:
            sources.append((self._corpus, self._behind))
        found = []
        for automaton, match in sources:
            for token in path:
                match = automaton.follow(match, token)
            found.append(Continuation(automaton.continuation(match), match.length))
        return found

    def chances(self, proposed: Continuation) -> list[float]:
        """Return for each token the chance that it is right where all before it are."""
        classes = map(_class, range(proposed.match, proposed.match + len(proposed.tokens)))
        return [self._right[i] / self._seen[i] for i in classes]

    def _learn(self, proposed: Continuation, tokens: list[int]) -> None:
        for number, (guess, token) in enumerate(zip(proposed.tokens, tokens, strict=False)):
            i = _class(proposed.match + number)
            self._seen[i] += 1
            self._right[i] += guess == token
            if guess != token:
                return


def _class(match: int) -> int:
    return bisect_left(_LENGTHS, match)

"""The automaton against a search through the whole text, and what is counted of continuations."""

import random

import pytest

from poss_export.runtime.planning.lookup import DEEPEST, Continuation, Lookup, Match, SuffixAutomaton


def longest_repeat(text: list[int]) -> tuple[int, int]:
    """Return how long the longest end of `text` is that occurs earlier, and where its newest one ends."""
    for length in range(len(text) - 1, 0, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return length, end
    return 0, 0


@pytest.mark.parametrize("vocab", [2, 3, 8])
def test_the_longest_match_and_what_followed_it_last(vocab: int) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        automaton, text = SuffixAutomaton(), list[int]()
        for _ in range(50):
            text.append(rng.randrange(vocab))
            automaton.add(text[-1])
            length, end = longest_repeat(text)
            assert automaton.match.length == length
            assert automaton.continuation(automaton.match) == (text[end : end + DEEPEST] if length else [])


def test_a_text_that_repeats_itself_costs_no_more() -> None:
    """Each token renews a bounded number of states, also where thousands end with it."""
    automaton = SuffixAutomaton([7] * 3000)
    assert automaton.match.length == 2999
    assert automaton.continuation(automaton.match) == [7]


def test_following_gives_the_longest_end_that_a_corpus_knows() -> None:
    corpus = [1, 2, 3, 4, 1, 2, 5]
    automaton, match = SuffixAutomaton(corpus), Match()
    lengths = []
    for token in (9, 1, 2, 3, 2, 5):
        match = automaton.follow(match, token)
        lengths.append(match.length)
    assert lengths == [0, 1, 2, 3, 1, 2]
    assert automaton.continuation(automaton.follow(Match(), 4)) == [1, 2, 5]


def test_a_path_of_guesses_is_gone_on_from() -> None:
    lookup = Lookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 9, 1, 2])
    assert lookup.continuations() == [Continuation([3, 4, 5, 6, 9, 1, 2], 2)]
    assert lookup.continuations([3, 4]) == [Continuation([5, 6, 9, 1, 2], 4)]
    assert lookup.continuations([8])[0].tokens == []


def test_a_corpus_is_a_second_source() -> None:
    lookup = Lookup(SuffixAutomaton([5, 6, 7, 8]))
    lookup.extend([1, 5, 6])
    own, other = lookup.continuations()
    assert own.tokens == []
    assert other == Continuation([7, 8], 2)


def test_longer_matches_and_later_tokens_are_likelier() -> None:
    lookup = Lookup()
    for match in (1, 2, 5, 30):
        chances = lookup.chances(Continuation([0] * DEEPEST, match))
        assert len(chances) == DEEPEST
        assert chances == sorted(chances)
    assert lookup.chances(Continuation([0], 1)) < lookup.chances(Continuation([0], 2))


def test_what_was_wrong_becomes_less_likely_and_what_was_right_more() -> None:
    proposed = Continuation([0], 2)
    before = Lookup().chances(proposed)
    wrong, right = Lookup(), Lookup()
    for number in range(20):
        for lookup, after in ((wrong, [100 + number]), (right, [3, 100 + number])):
            lookup.extend([1, 2])
            lookup.extend(after)  # behind "1 2" something else each time, or always the same
    assert wrong.chances(proposed) < before < right.chances(proposed)

from collections.abc import Sequence
from dataclasses import replace

import pytest

from poss_export.errors import InputError
from poss_export.runtime.transcript import Transcript
from poss_export.text import Text


def feed(transcript: Transcript, ids: Sequence[int]) -> list[str]:
    """Add tokens one by one, as target-only decoding does; return the pieces."""
    pieces = []
    for token in ids:
        pieces.append(transcript.add([token]))
        if transcript.finish_reason:
            break
    return [*pieces, transcript.finish()]


def test_text_comes_piece_by_piece(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 10, ())
    assert feed(transcript, byte_text.encode("abc")) == ["a", "b", "c", ""]
    assert transcript.text == "abc"
    assert transcript.finish_reason == "capacity"


def test_characters_come_whole(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 10, ())
    assert feed(transcript, byte_text.encode("é€")) == ["", "é", "", "", "€", ""]


def test_unfinished_character_at_the_end_is_shown_as_such(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 3, ())
    assert feed(transcript, byte_text.encode("a€")) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert transcript.finish_reason == "length"
    assert transcript.text == byte_text.decode(transcript.token_ids)


def test_stop_token_ends_without_text(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 10, ())
    (stop,) = byte_text.config.stop_ids
    assert transcript.add([*byte_text.encode("ab"), stop, *byte_text.encode("never")]) == "ab"
    assert transcript.finish_reason == "stop"
    assert transcript.token_ids == [*byte_text.encode("ab"), stop]
    assert transcript.finish() == ""


def test_length_ends_inside_a_round(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 2, ())
    assert transcript.add(byte_text.encode("abcd")) == "ab"
    assert transcript.finish_reason == "length"
    assert len(transcript.token_ids) == 2


@pytest.mark.parametrize(
    ("answer", "stops", "text", "tokens"),
    [
        ("one two three", [" two"], "one", 7),
        ("aaab", ["aab"], "a", 4),  # the beginning that is held moves on
        ("abababc", ["ababc"], "ab", 7),
        ("x</s>y", ["</s>", "</"], "x", 3),  # the first to be complete
        ("x</s>y", ["s>y", "</s>"], "x", 5),
        ("€uro", ["ur"], "€", 5),
        ("stop", ["stop"], "", 4),
    ],
)
def test_stop_strings(byte_text: Text, answer: str, stops: list[str], text: str, tokens: int) -> None:
    ids = byte_text.encode(answer)
    by_token, at_once = Transcript(byte_text, 99, stops), Transcript(byte_text, 99, stops)
    pieces = feed(by_token, ids)
    assert "".join(pieces) == by_token.text == text
    assert by_token.finish_reason == "stop_string"
    assert by_token.token_ids == ids[:tokens]
    assert at_once.add(ids) + at_once.finish() == text  # however many tokens a round brings
    assert (at_once.token_ids, at_once.finish_reason) == (by_token.token_ids, by_token.finish_reason)


def test_held_text_comes_when_it_is_certain(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 99, ["END"])
    assert feed(transcript, byte_text.encode("aENbE")) == ["a", "", "", "ENb", "", "E"]
    assert transcript.text == "aENbE"


def test_held_text_comes_at_a_stop_token(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 99, ["END"])
    assert transcript.add([*byte_text.encode("aEN"), *byte_text.config.stop_ids]) == "a"
    assert transcript.finish() == "EN"
    assert (transcript.text, transcript.finish_reason) == ("aEN", "stop")


def test_stop_string_complete_with_the_last_token_allowed(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 3, ["bc"])
    assert "".join(feed(transcript, byte_text.encode("abc"))) == "a"
    assert transcript.finish_reason == "stop_string"


def test_unfinished_character_before_a_stop_token_is_shown(byte_text: Text) -> None:
    transcript = Transcript(byte_text, 9, ())
    transcript.add([*byte_text.encode("a€")[:-1], *byte_text.config.stop_ids])
    transcript.finish()
    assert transcript.text == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("value", [0, -3])
def test_no_tokens_asked_for(byte_text: Text, value: int) -> None:
    with pytest.raises(InputError, match=f"max_new_tokens is {value}; it must be at least 1"):
        Transcript(byte_text, value, ())


def test_empty_stop_string(byte_text: Text) -> None:
    with pytest.raises(InputError, match="a stop string is empty"):
        Transcript(byte_text, 9, ["x", ""])


def test_a_control_token_to_stop_at_ends_the_answer(byte_text: Text) -> None:
    """No text of an answer holds one, so that a search in it would go on for ever."""
    (name, number), *_ = byte_text.hidden_ids.items()
    plain = replace(byte_text.config, stop_ids=())
    transcript = Transcript(Text(byte_text.tokenizer_json, plain), 9, [name, "x"])
    assert feed(transcript, [*byte_text.encode("a"), number, *byte_text.encode("b")]) == ["a", "", ""]
    assert (transcript.text, transcript.finish_reason) == ("a", "stop")
    with pytest.raises(
        InputError, match=r"holds the control token .*give the token alone, or the text"
    ) as caught:
        Transcript(byte_text, 9, [f"\n{name}"])
    assert caught.value.options == ("stop",)

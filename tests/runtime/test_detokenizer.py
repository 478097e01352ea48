"""Pieces of text join to what the whole decodes to, for tokens in any order and every kind of decoder."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from poss_export.runtime.transcript import Transcript
from poss_export.text import Text, TextConfig

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
WORDS = [
    *("a", "▁", "▁▁", "▁b", "c▁", "##d", "##", "e</w>", "</w>", ".", "n't", "|", "<pad>"),
    *("é", "\N{REPLACEMENT CHARACTER}", "", " "),
]
DECODERS: dict[str, Any] = {
    "llama": decoders.Sequence(LLAMA),
    "gemma": decoders.Sequence(LLAMA[:3]),
    "strip-3": decoders.Sequence([*LLAMA[:3], decoders.Strip(" ", 3, 0)]),
    "metaspace": decoders.Metaspace(),
    "metaspace-never": decoders.Metaspace(prepend_scheme="never"),
    "metaspace-bytes": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "wordpiece": decoders.WordPiece(),
    "suffix": decoders.BPEDecoder(),
    "ctc": decoders.CTC(),
    "none": None,
}


def words_tokenizer(decoder: Any) -> Tokenizer:
    """A vocabulary of words and bytes, a special token at its end, and one behind what is known."""
    names = [*WORDS, *BYTES]
    tokenizer = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens(["<tool>", " x "])
    return tokenizer


def bytes_tokenizer() -> Tokenizer:
    """A byte-level vocabulary, with a special token and an added one of two bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: at for at, byte in enumerate(alphabet)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens(["<tool>", "ü€"])
    return tokenizer


TEXTS = {
    **{name: Text(words_tokenizer(decoder).to_str(), TextConfig(())) for name, decoder in DECODERS.items()},
    "byte-level": Text(bytes_tokenizer().to_str(), TextConfig(())),
}


def pieces(text: Text, ids: Sequence[int], *stop: str) -> tuple[list[str], Transcript]:
    transcript = Transcript(text, len(ids) + 1, stop)
    shown = []
    for token in ids:
        shown.append(transcript.add([token]))
        if transcript.finish_reason is not None:
            break
    return [*shown, transcript.finish()], transcript


@pytest.mark.parametrize("kind", TEXTS)
@given(data=st.data())
def test_pieces_join_to_the_whole(kind: str, data: st.DataObject) -> None:
    text = TEXTS[kind]
    size = text.tokenizer.get_vocab_size()
    some = st.one_of(st.integers(0, size + 1), st.integers(0, len(WORDS)), st.integers(size - 4, size + 1))
    ids = data.draw(st.lists(some, max_size=24))
    shown, transcript = pieces(text, ids)
    assert "".join(shown) == transcript.text == text.decode(ids)


@given(written=st.text(max_size=12), cut=st.integers(0, 60))
def test_written_text_comes_back(written: str, cut: int) -> None:
    """Characters that are no words come as their bytes; what is cut short shows what its ids decode to."""
    text = TEXTS["llama"]
    vocabulary = text.tokenizer.get_vocab()
    ids = [vocabulary[BYTES[byte]] for byte in written.encode()]
    assert "".join(pieces(text, [0, *ids, 0])[0]) == f"a{written}a"
    shown, _ = pieces(text, [0, *ids[:cut]])
    assert "".join(shown) == text.decode([0, *ids[:cut]])


def test_a_run_of_bytes_comes_when_it_is_over() -> None:
    """One more byte can turn all of it into replacement characters; a special token does not end it."""
    text = TEXTS["llama"]
    ids = text.tokenizer.get_vocab()
    run = [ids[name] for name in ("a", "▁b", "<0x0A>", "<s>", "<0x41>", "a", "<0x0A>", "<0xC3>", "a")]
    assert pieces(text, run)[0] == ["a", " b", "", "", "", "\nAa", "", "", "��a", ""]


@pytest.mark.parametrize(("stop", "tokens", "shown"), [("\n", 2, "a"), ("\nA", 4, "a"), ("é", 6, "a\nA")])
def test_a_stop_string_of_bytes_ends_at_its_last_byte(stop: str, tokens: int, shown: str) -> None:
    text = TEXTS["llama"]
    ids = text.tokenizer.get_vocab()
    run = [ids[name] for name in ("a", "<0x0A>", "<s>", "<0x41>", "<0xC3>", "<0xA9>", "a")]
    parts, transcript = pieces(text, run, stop)
    assert "".join(parts) == transcript.text == shown
    assert (transcript.finish_reason, transcript.token_ids) == ("stop_string", run[:tokens])


def test_half_a_character_is_no_stop_string() -> None:
    text = TEXTS["byte-level"]
    ids = Tokenizer.from_str(text.tokenizer_json)
    ids.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts, transcript = pieces(text, ids.encode("a€b").ids, "\N{REPLACEMENT CHARACTER}")
    assert ("".join(parts), transcript.finish_reason) == ("a€b", "capacity")

"""Tokenizer and template files of folders: the same as AutoTokenizer makes of them, or refused."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from poss_export.errors import CheckpointError
from poss_export.targets.hf_text import read_text
from poss_export.text import user_says
from tests.fixtures.small_tokenizers import KINDS

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
SAID = (
    "The quick brown fox didn't pay 1234.50 for jazz.",
    "  two spaces in front",
    "Why?\n\ndef f(x):\n\treturn x\r\n",
    "e\u0301 é 東京 🙂 \u00a0|",
    "a</s>b <s> c<|im_end|><|im_start|>user",
    "<think>hm</think> xylophone <tool> <|extra|>",
    "long " * 60,
    "",
)
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def token(content: str, **facts: Any) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **facts}


def write(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    model_type: str = "llama",
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
) -> Path:
    """Write a folder's text files; `config` is tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"model_type": model_type, "vocab_size": 1000, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(facts))
    for name, content in {"tokenizer_config.json": config, **(files or {})}.items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def assert_same(folder: Path) -> None:
    """Compare ids, text, dialogues and special tokens with those of AutoTokenizer."""
    ours, theirs = read_text(folder), cast(Any, AutoTokenizer).from_pretrained(str(folder))
    for said in SAID:
        ids = theirs.encode(said)
        assert ours.encode(said) == ids, said
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), said
        if theirs.chat_template is not None:
            dialogue = [user_says(said)]
            expected = theirs.apply_chat_template(dialogue, add_generation_prompt=True, return_dict=False)
            assert ours.encode_chat(dialogue, control_tokens=True) == expected, said
    assert dict(ours.config.special_tokens) == theirs.special_tokens_map
    if theirs.eos_token_id is not None:
        assert theirs.eos_token_id in ours.config.stop_ids


def with_processor(tokenizer: Tokenizer, processor: Any) -> Tokenizer:
    tokenizer.post_processor = processor
    return tokenizer


def ids_of(tokenizer: Tokenizer, *tokens: str) -> list[tuple[str, int]]:
    return [(content, cast(int, tokenizer.token_to_id(content))) for content in tokens]


CLASSES = {
    ("byte-level", "llama"): ("PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", None),
    ("byte-level", "mistral"): ("PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer", None),
    ("byte-level", "qwen3"): ("PreTrainedTokenizerFast", "NoSuchTokenizer"),
    ("qwen", "qwen2"): ("Qwen2Tokenizer", "Qwen2TokenizerFast", "LlamaTokenizerFast", None),
    ("qwen", "qwen3"): ("Qwen2Tokenizer", None),
    ("llama2", "llama"): ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", None),
    ("llama2", "mistral"): ("LlamaTokenizer", "PreTrainedTokenizerFast"),
    ("metaspace", "llama"): ("LlamaTokenizer", "PreTrainedTokenizerFast"),
    ("unigram", "llama"): ("PreTrainedTokenizerFast",),
}


@pytest.mark.parametrize(("kind", "model_type"), CLASSES)
def test_classes_of_tokenizers(kind: str, model_type: str, tmp_path: Path) -> None:
    for number, name in enumerate(CLASSES[kind, model_type]):
        config = {**SPECIAL, "chat_template": TEMPLATE} | ({} if name is None else {"tokenizer_class": name})
        assert_same(write(tmp_path / f"{number}", KINDS[kind](), model_type=model_type, config=config))


@pytest.mark.parametrize(
    ("kind", "model_type", "name"),
    [
        ("byte-level", "qwen2", None),  # digits are split otherwise
        ("unigram", "llama", "LlamaTokenizer"),
        ("llama2", "qwen2", "LlamaTokenizer"),
        ("metaspace", "llama", "GPT2Tokenizer"),
    ],
)
def test_a_class_that_reads_plain_text_otherwise_is_refused(
    kind: str, model_type: str, name: str | None, tmp_path: Path
) -> None:
    config = SPECIAL if name is None else {**SPECIAL, "tokenizer_class": name}
    folder = write(tmp_path, KINDS[kind](), model_type=model_type, config=config)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: transformers rebuilds this|not a readable"):
        read_text(folder)


def test_truncation_and_padding_change_no_prompt(tmp_path: Path) -> None:
    """As a folder has them that was saved after training."""
    tokenizer = KINDS["byte-level"]()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_id=1, pad_token="</s>")
    folder = write(tmp_path, tokenizer, config=FAST)
    assert_same(folder)
    text = read_text(folder)
    assert len(text.encode("long " * 60)) > 60
    assert text.encode("Why? a") != text.encode("Why? b")
    assert len(text.encode("a")) == 1
    assert json.loads(text.tokenizer_json)["truncation"] is None


@pytest.mark.parametrize(
    "where", ["tokenizer_config", "added_tokens", "special_tokens_map", "extra", "named"]
)
def test_control_tokens_that_stand_beside_the_tokenizer(where: str, tmp_path: Path) -> None:
    tokenizer = KINDS["byte-level"]()
    new, end = tokenizer.get_vocab_size(), "<|end|>"
    config: dict[str, Any] = {**FAST, **SPECIAL, "eos_token": end, "chat_template": TEMPLATE}
    files: dict[str, Any] = {}
    if where == "tokenizer_config":
        config["added_tokens_decoder"] = {str(new): token(end), str(new + 1): token("<|extra|>")}
    elif where == "added_tokens":
        files["added_tokens.json"] = {end: new, "<tool>": new + 1}
    elif where == "special_tokens_map":
        del config["eos_token"]
        files["special_tokens_map.json"] = {
            "eos_token": token(end),
            "additional_special_tokens": ["<|extra|>"],
        }
    elif where == "extra":
        config |= {"eos_token": end, "additional_special_tokens": [end, "<tool>"]}
    else:
        config |= {"tool_token": "<tool>"}
    folder = write(tmp_path, tokenizer, config=config, files=files)
    assert_same(folder)
    text = read_text(folder)
    assert text.encode(f"a{end}")[-1] == new
    assert text.config.stop_ids == (2, new)
    assert dict(text.config.special_tokens)["eos_token"] == end
    assert text.decode([new]) == ""


def test_flags_of_added_tokens(tmp_path: Path) -> None:
    tokenizer = KINDS["byte-level"]()
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("word", single_word=True)])
    folder = write(tmp_path, tokenizer, config=FAST)
    text = read_text(folder)
    assert_same(folder)
    theirs = cast(Any, AutoTokenizer).from_pretrained(str(folder))
    for said in ("a <left> b", "a <right> b", "word words a word"):
        assert text.encode(said) == theirs.encode(said)


POST_PROCESSORS = {
    "front": "<s> $A",
    "appended": "$A </s>",
    "both": "<s> $A </s>",
    "a front token that is no bos": "<|im_start|> $A",
    "several": "<s> <s> $A <|im_end|>",
    "twice": "$A </s> $A",
}


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_post_processors(name: str, tmp_path: Path) -> None:
    tokenizer, single = KINDS["byte-level"](), POST_PROCESSORS[name]
    special = ids_of(tokenizer, *{part for part in single.split() if part != "$A"})
    with_processor(tokenizer, processors.TemplateProcessing(single=single, special_tokens=special))
    folder = write(tmp_path, tokenizer, config={**FAST, **SPECIAL, "chat_template": TEMPLATE})
    assert_same(folder)
    assert (
        read_text(folder).encode("a") != read_text(folder).tokenizer.encode("a", add_special_tokens=False).ids
    )


def test_post_processors_of_other_kinds(tmp_path: Path) -> None:
    end, front = ids_of(KINDS["byte-level"](), "</s>", "<s>")
    for number, processor in enumerate(
        (
            processors.RobertaProcessing(end, front),
            processors.BertProcessing(end, front),
            processors.ByteLevel(trim_offsets=False),
            processors.Sequence([processors.ByteLevel(), processors.BertProcessing(end, front)]),
        )
    ):
        tokenizer = with_processor(KINDS["byte-level"](), processor)
        assert_same(write(tmp_path / f"{number}", tokenizer, config={**FAST, **SPECIAL}))


@pytest.mark.parametrize(
    "asked", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_asking_for_bos_and_eos(asked: dict[str, bool], name: str, tmp_path: Path) -> None:
    for kind in ("llama2", "metaspace"):
        config = {"tokenizer_class": name, **SPECIAL, **asked}
        assert_same(write(tmp_path / kind, KINDS[kind](), config=config))


def test_templates_in_every_place(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b{{ tools }}"}]
    places: list[tuple[dict[str, Any], dict[str, Any], tuple[str | None, str | None]]] = [
        ({"chat_template": "a"}, {}, ("a", None)),
        ({"chat_template": "a"}, {"chat_template.jinja": "b"}, ("b", None)),
        ({"chat_template": named}, {}, ("a", "b{{ tools }}")),
        ({}, {"chat_template.jinja": "b", "additional_chat_templates/tool_use.jinja": "c"}, ("b", "c")),
        ({}, {}, (None, None)),
    ]
    for number, (config, files, expected) in enumerate(places):
        folder = write(tmp_path / f"{number}", KINDS["byte-level"](), config={**FAST, **config}, files=files)
        assert_same(folder)
        found = read_text(folder).config
        assert (found.chat_template, found.tool_template) == expected
    folder = write(tmp_path / "none", KINDS["byte-level"](), config={**FAST, "chat_template": named[1:]})
    with pytest.raises(CheckpointError, match="of its chat templates tool_use none is the default; copy"):
        read_text(folder)


def test_a_tokenizer_of_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert_same(write(tmp_path, tokenizer, config=FAST))


@pytest.mark.parametrize(
    ("kind", "config", "files", "message"),
    [
        ("byte-level", {"split_special_tokens": True}, {}, "split_special_tokens is true.*set it to false"),
        ("unigram", {"clean_up_tokenization_spaces": True}, {}, "clean_up_tokenization_spaces is true"),
        (
            "byte-level",
            {"tokenizer_class": "BertJapaneseTokenizer"},
            {},
            "no tokenizer.json can hold|not a readable",
        ),
        (
            "byte-level",
            {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}},
            {},
            "not a readable tokenizer",
        ),
        ("byte-level", {"added_tokens_decoder": {"900": token("<|end|>")}}, {}, r"'<\|end\|>' has id 900"),
        ("byte-level", {}, {"added_tokens.json": {"<|end|>": 7}}, r"'<\|end\|>' has id 7"),
        ("unigram", {"tokenizer_class": "BertTokenizer"}, {}, "not a readable tokenizer"),
        ("byte-level", {"eos_token": 5}, {}, "not a readable tokenizer"),
        ("byte-level", {}, {"tokenizer_config.json": "{"}, "not a readable tokenizer"),
        ("byte-level", {}, {"tokenizer_config.json": "[]"}, "not a readable tokenizer"),
        ("byte-level", {}, {"special_tokens_map.json": "{"}, "not a readable tokenizer"),
        ("byte-level", {}, {"tokenizer.json": "[]"}, "not a readable tokenizer"),
        ("byte-level", {}, {"tokenizer.json": "\xff"}, "not a readable tokenizer"),
    ],
)
def test_what_cannot_be_the_same_is_refused(
    kind: str, config: dict[str, Any], files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, KINDS[kind](), config={**FAST, **SPECIAL, **config}, files=files)
    with pytest.raises(CheckpointError, match=message):
        read_text(folder)


def test_an_id_beyond_all_vocabularies_is_refused(tmp_path: Path) -> None:
    """The library would go through all numbers up to it, and keep those that are missing."""
    folder = write(tmp_path, KINDS["byte-level"](), config=FAST)
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["vocab"]["a"] = 4_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="a token has id 4000000000, more than any target has tokens"):
        read_text(folder)


def test_cleaning_spaces_is_no_matter_of_bpe(tmp_path: Path) -> None:
    config = {**FAST, "clean_up_tokenization_spaces": True}
    folder = write(tmp_path, KINDS["byte-level"](), config=config)
    assert_same(folder)
    text = read_text(folder)
    assert text.decode(text.encode("a , b .")) == "a , b ."


def test_an_eos_that_the_model_does_not_have_stops_nothing(tmp_path: Path) -> None:
    """Classes invent one."""
    folder = write(tmp_path, KINDS["qwen"](), model_type="qwen2")
    size = KINDS["qwen"]().get_vocab_size()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": size}))
    assert read_text(folder).config.stop_ids == ()

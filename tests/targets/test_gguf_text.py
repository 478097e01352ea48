"""A GGUF file of a folder is the folder: the same ids, text, stop tokens and logits; or it is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.tokenization_utils_base import generate_merges

from poss_export.errors import CheckpointError
from poss_export.targets.checkpoint import Target, open_target
from poss_export.targets.decoder import causal_attend
from poss_export.text import user_says
from tests.fixtures.small_tokenizers import byte_level, llama2, metaspace, qwen
from tests.fixtures.write_gguf import vocabulary_of, write_gguf
from tests.targets.test_hf_text import SAID, TEMPLATE

VOCAB = 512  # more than any of the tokenizers has
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3_ROPE |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES
)


def split_by(pattern: str) -> Tokenizer:
    """Byte-level behind a split, with a word that is a token but no merge makes, and bos in front."""
    plain = byte_level(use_regex=False)
    said = json.loads(plain.to_str())
    said["model"]["vocab"]["Ġzebra"] = max(said["model"]["vocab"].values()) + len(said["added_tokens"])
    said["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(said))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def smollm() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def sentence_piece(like: Callable[[], Tokenizer] = llama2) -> Tokenizer:
    """As it is converted from SentencePiece's own file: every pair that makes a token is a merge."""
    trained = json.loads(llama2().to_str())
    vocab = trained["model"]["vocab"]
    ranks = {"".join(pair): rank for rank, pair in reversed([*enumerate(trained["model"]["merges"])])}
    merges = generate_merges(vocab, {token: -float(ranks.get(token, 1e6)) for token in vocab})
    tokenizer = like()
    tokenizer.model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer.add_special_tokens([AddedToken("<unk>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


# kind: tokenizer, model type, architecture of the file, model and splitting in its header, tokenizer class
TWINS: dict[str, tuple[Callable[[], Tokenizer], str, str, str, str, str]] = {
    "gpt-2": (byte_level, "llama", "llama", "gpt2", "gpt-2", "PreTrainedTokenizerFast"),
    "smollm": (smollm, "llama", "llama", "gpt2", "smollm", "PreTrainedTokenizerFast"),
    "llama-bpe": (lambda: split_by(LLAMA3), "llama", "llama", "gpt2", "llama-bpe", "PreTrainedTokenizerFast"),
    "tekken": (lambda: split_by(TEKKEN), "mistral", "llama", "gpt2", "tekken", "PreTrainedTokenizerFast"),
    "qwen2": (qwen, "qwen2", "qwen2", "gpt2", "qwen2", "Qwen2Tokenizer"),
    "qwen3": (qwen, "qwen3", "qwen3", "gpt2", "qwen2", "Qwen2Tokenizer"),
    "sentencepiece": (sentence_piece, "llama", "llama", "llama", "default", "LlamaTokenizer"),
    "mistral": (partial(sentence_piece, metaspace), "mistral", "llama", "llama", "default", "LlamaTokenizer"),
}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return twin(kind): a folder and the GGUF file of it."""

    def make(kind: str) -> tuple[Path, Path]:
        tokenizer, model_type, architecture, model, pre, name = TWINS[kind]
        folder = tmp_path_factory.mktemp("twin")
        special: dict[str, Any] = {"rope_parameters": LLAMA3_ROPE} if kind == "llama-bpe" else {}
        if model_type == "mistral":
            special |= {"sliding_window": None}
        config = AutoConfig.for_model(
            model_type,
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=256,
            rms_norm_eps=2**-20,
            tie_word_embeddings=kind == "smollm",
            eos_token_id=tokenizer().token_to_id("</s>"),
            **special,
        )
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        made = auto.from_config(config)
        for weight in made.parameters():
            torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
        made.save_pretrained(folder)
        tokenizer().save(str(folder / "tokenizer.json"))
        names: dict[str, Any] = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": TEMPLATE,
            "tokenizer_class": name,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(names))
        file = folder.with_suffix(".gguf")
        return folder, write_gguf(file, folder, architecture, vocabulary_of(folder, model, pre, VOCAB))

    return make


def logits(target: Target, ids: list[int]) -> torch.Tensor:
    decoder = target.load_decoder()
    features = decoder.hidden(torch.tensor([ids]), causal_attend(target.config, len(ids), torch.float32))
    return decoder.head(features)


@pytest.mark.parametrize("kind", TWINS)
def test_a_file_is_its_folder(kind: str, twin: Callable[[str], tuple[Path, Path]]) -> None:
    folder, file = map(open_target, map(str, twin(kind)))
    for said in (
        *SAID,
        "a zebra, 12345 and 1,000",
        "\u0130 \u017f \u212a \ufb01",
        "e\u0301\u0327 é e\u0301",
        "'S we'LL",
    ):
        ids = folder.text.encode(said)
        assert file.text.encode(said) == ids, said
        assert file.text.decode(ids) == folder.text.decode(ids), said
        for control_tokens in (True, False):
            dialogue = [user_says(said), {"role": "assistant", "content": said}, user_says("so")]
            expected = folder.text.encode_chat(dialogue, control_tokens=control_tokens)
            assert file.text.encode_chat(dialogue, control_tokens=control_tokens) == expected, said
    assert file.text.decode(range(VOCAB)) == folder.text.decode(range(VOCAB))
    assert file.text.config.stop_ids == folder.text.config.stop_ids
    ours, theirs = (dict(target.text.config.special_tokens) for target in (file, folder))
    assert all(ours[name] == theirs[name] for name in ("bos_token", "eos_token"))
    assert file.config.rope == folder.config.rope
    ids = folder.text.encode(SAID[0])
    assert torch.equal(logits(file, ids), logits(folder, ids))


@pytest.fixture(scope="module")
def twins(twin: Callable[[str], tuple[Path, Path]]) -> dict[str, Path]:
    """One folder of each kind of tokenizer."""
    return {"gpt2": twin("gpt-2")[0], "llama": twin("sentencepiece")[0], "qwen2": twin("qwen2")[0]}


def rewritten(folder: Path, file: Path, like: str, pre: str | None, **changes: Any) -> Target:
    """Open a GGUF file of a folder whose vocabulary says something else."""
    vocabulary = vocabulary_of(folder, like, pre, VOCAB)
    facts = {
        name: value
        for name, value in (vocabulary.facts | changes.pop("facts", {})).items()
        if value is not None
    }
    architecture = "qwen2" if pre == "qwen2" else "llama"
    return open_target(
        str(write_gguf(file, folder, architecture, replace(vocabulary, facts=facts, **changes)))
    )


def test_what_the_header_puts_around_prompts(twins: dict[str, Path], tmp_path: Path) -> None:
    front, end = {"add_bos_token": True}, {"add_eos_token": True}
    for model, pre, facts, around in (
        ("gpt2", "gpt-2", {}, ([], [])),
        ("gpt2", "gpt-2", front | end, ([0], [1])),
        ("gpt2", "llama-bpe", {}, ([0], [])),
        ("gpt2", "llama-bpe", {"add_bos_token": False}, ([], [])),
        ("llama", "default", {}, ([1], [])),
        ("llama", None, {"add_bos_token": False, "add_eos_token": True}, ([], [2])),
    ):
        text = rewritten(twins[model], tmp_path / "a.gguf", model, pre, facts=facts).text
        plain = text.tokenizer.encode("a jazz", add_special_tokens=False).ids
        assert text.encode("a jazz") == [*around[0], *plain, *around[1]]
    text = rewritten(
        twins["llama"], tmp_path / "b.gguf", "llama", None, facts={"add_space_prefix": False}
    ).text
    assert text.tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_every_end_token_stops(twins: dict[str, Path], tmp_path: Path) -> None:
    def stops(pre: str, names: dict[int, str], **facts: Any) -> tuple[int, ...]:
        vocabulary = vocabulary_of(twins["gpt2"], "gpt2", pre, VOCAB)
        tokens = [names.get(number, token) for number, token in enumerate(vocabulary.tokens)]
        kinds = [
            TokenType.CONTROL if number in names else kind for number, kind in enumerate(vocabulary.kinds)
        ]
        found = replace(vocabulary, tokens=tokens, kinds=kinds, facts=vocabulary.facts | facts)
        return open_target(
            str(write_gguf(tmp_path / "a.gguf", twins["gpt2"], "llama", found))
        ).text.config.stop_ids

    assert stops("smollm", {}) == (1,)
    assert stops("smollm", {}, eot_token_id=3, eom_token_id=2) == (1, 2, 3)
    llama3 = {400: "<|end_of_text|>", 401: "<|eom_id|>", 402: "<|eot_id|>"}
    assert stops("llama-bpe", llama3, eos_token_id=402) == (
        400,
        401,
        402,
    )  # of a model that was taught to chat
    assert stops("llama-bpe", llama3, eos_token_id=400) == (400,)
    assert stops("qwen2", {400: "<|endoftext|>"}, eos_token_id=3) == (3, 400)


def test_only_control_tokens_are_left_out_of_answers(twins: dict[str, Path], tmp_path: Path) -> None:
    """`<think>` is a token of the user's kind: templates write it, and answers show it."""
    text = rewritten(twins["gpt2"], tmp_path / "a.gguf", "gpt2", "gpt-2").text
    assert text.decode(text.encode("<think>a</s>b")) == "<think>ab"


def test_a_template_for_tools(twins: dict[str, Path], tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    config = rewritten(twins["gpt2"], tmp_path / "a.gguf", "gpt2", "gpt-2", template=template).text.config
    assert (config.chat_template, config.tool_template) == (template, None)


def test_what_a_header_of_sentencepiece_leaves_open_is_told(twins: dict[str, Path], tmp_path: Path) -> None:
    assert "legacy" in rewritten(twins["llama"], tmp_path / "a.gguf", "llama", None).doubts[0]
    assert rewritten(twins["gpt2"], tmp_path / "a.gguf", "gpt2", "gpt-2").doubts == ()


@pytest.mark.parametrize(
    ("model", "pre", "changes", "message"),
    [
        ("gpt2", "deepseek-r1-qwen", {}, "pre-tokenizer 'deepseek-r1-qwen' splits text is not known"),
        ("gpt2", None, {}, "no 'tokenizer.ggml.pre'"),
        ("gpt2", "gpt-2", {"merges": None}, "no 'tokenizer.ggml.merges'"),
        ("gpt2", "gpt-2", {"kinds": []}, "no 'tokenizer.ggml.token_type'"),
        ("gpt2", "gpt-2", {"facts": {"eos_token_id": None}}, "no 'tokenizer.ggml.eos_token_id'"),
        (
            "gpt2",
            "gpt-2",
            {"facts": {"bos_token_id": None, "add_bos_token": True}},
            "no 'tokenizer.ggml.bos_token_id'",
        ),
        (
            "gpt2",
            "gpt-2",
            {"facts": {"eos_token_id": 5000}},
            "eos_token_id is 5000, but there are 512 tokens",
        ),
        ("gpt2", "gpt-2", {"tokens": []}, "no 'tokenizer.ggml.tokens'"),
        ("gpt2", "gpt-2", {"model": "bert"}, "tokenizer 'bert' cannot be rebuilt.*gpt2, llama"),
        ("llama", None, {"scores": None}, "no 'tokenizer.ggml.scores'"),
    ],
)
def test_what_a_header_lacks_is_named(
    model: str, pre: str | None, changes: dict[str, Any], message: str, twins: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        rewritten(twins[model], tmp_path / "a.gguf", model, pre, **changes)

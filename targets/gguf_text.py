"""The text of GGUF files: the tokenizer that a header describes, rebuilt as the model's folder has it.

A header holds tokens, merges or scores, and the name of how text is split before; what that name means is
known here for the tokenizers of supported targets, and every other name is refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poss_export.errors import CheckpointError
from poss_export.targets.gguf import GgufFile
from poss_export.text import Text, TextConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type
_NAMED = ("bos", "eos", "unk", "pad")  # roles of tokens that templates know by a name
_ENDS = ("eos", "eot", "eom")  # roles of tokens that end an answer
_KEYS = {"unk": "unknown", "pad": "padding"}  # where a role is called otherwise in the header

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Splitting:
    """What `tokenizer.ggml.pre` says of a byte-level tokenizer.

    `pattern` None is GPT-2's. `ends`: the control token that ends a turn, then those that end answers too
    where it is the header's end token, as the generation_config.json of these models lists them.
    """

    pattern: str | None = None
    digits: bool = False  # each digit apart
    composed: bool = False  # in Unicode's composed form (NFC)
    whole_words: bool = False  # a piece that is a token is not merged from its parts
    bos: bool = False  # in front, where the header does not say
    ends: tuple[str, ...] = ()


_LLAMA3 = _Splitting(
    _LLAMA3_SPLIT, whole_words=True, bos=True, ends=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
)
_SPLITTINGS = {
    "gpt-2": _Splitting(),
    "smollm": _Splitting(digits=True),
    "refact": _Splitting(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _Splitting(_QWEN2_SPLIT, composed=True, ends=("<|im_end|>", "<|endoftext|>")),
    "tekken": _Splitting(_TEKKEN_SPLIT, whole_words=True, bos=True),
}


def read_text(file: GgufFile) -> Text:
    """Rebuild the tokenizer that a header describes: byte-level BPE, or SentencePiece's BPE.

    Raises:
        CheckpointError: it is of another kind, split in an unknown way, or the header lacks a part of it.
    """
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if (model := file.need("tokenizer.ggml.model")) not in makers:
        raise CheckpointError(
            f"{file.files[0]}: tokenizer {model!r} cannot be rebuilt from the file; this version knows "
            f"{', '.join(makers)}: use the Hugging Face folder of this model"
        )
    tokens, kinds = file.need("tokenizer.ggml.tokens"), file.need("tokenizer.ggml.token_type")
    tokenizer = makers[model](file, tokens, kinds)
    _add_tokens(tokenizer, tokens, kinds)
    _surround(file, tokenizer, tokens, bos=model == "llama" or _splitting(file).bos)
    return Text(tokenizer.to_str(), _config(file, tokens, kinds))


def libraries(file: GgufFile) -> tuple[str, ...]:
    """Return the libraries whose versions may decide what is rebuilt."""
    return ("transformers",) if file.get("tokenizer.ggml.model") == "llama" else ()


def doubts(file: GgufFile) -> tuple[str, ...]:
    """Return what the header leaves open."""
    if file.get("tokenizer.ggml.model") != "llama":
        return ()
    return (
        "a GGUF file does not say whether its tokenizer puts a space behind control tokens and before a text "
        "that begins with one, as with legacy: true in tokenizer_config.json; here it puts none, so give the "
        "Hugging Face folder of such a model",
    )


def _splitting(file: GgufFile) -> _Splitting:
    name = file.need("tokenizer.ggml.pre")
    if name not in _SPLITTINGS:
        raise CheckpointError(
            f"{file.files[0]}: how pre-tokenizer {name!r} splits text is not known here, only "
            f"{', '.join(_SPLITTINGS)}; use the Hugging Face folder of this model"
        )
    return _SPLITTINGS[name]


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    splitting = _splitting(file)
    merges = [tuple(merge.split(" ")) for merge in file.need("tokenizer.ggml.merges")]
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=splitting.whole_words))
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps = list[Any]()
    if splitting.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(splitting.pattern), "isolated"))
    if splitting.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GgufFile, tokens: list[str], kinds: list[int]) -> "Tokenizer":
    """Return what transformers makes of such a vocabulary; its scores say which merge comes first."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED}
    scores = dict(zip(tokens, file.need("tokenizer.ggml.scores"), strict=True))
    made = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab, {token: scores[token] for token in vocab}),
        **_special_tokens(file, tokens),
        add_prefix_space=file.get("tokenizer.ggml.add_space_prefix", True),
    )
    tokenizer: Tokenizer = made.backend_tokenizer
    return tokenizer


def _add_tokens(tokenizer: "Tokenizer", tokens: list[str], kinds: list[int]) -> None:
    """Make those tokens whole that are no text; only control tokens are left out of answers."""
    from tokenizers import AddedToken

    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    plain = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])


def _surround(file: GgufFile, tokenizer: "Tokenizer", tokens: list[str], *, bos: bool) -> None:
    """Put around plain prompts what the header asks for; `bos`: in front, where it does not say."""
    from tokenizers import processors

    def asked(name: str, default: bool) -> list[tuple[str, int]]:
        if not file.get(f"tokenizer.ggml.add_{name}_token", default):
            return []
        file.need(_key(name))
        number = _ids(file, tokens)[name]
        return [(tokens[number], number)]

    front, behind = asked("bos", bos), asked("eos", False)
    single = [*(token for token, _ in front), "$A", *(token for token, _ in behind)]
    if len(single) > 1:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[*front, *behind]
        )


def _config(file: GgufFile, tokens: list[str], kinds: list[int]) -> TextConfig:
    file.need(_key("eos"))
    ids = _ids(file, tokens)
    stop_ids = {ids[name] for name in _ENDS if name in ids}
    splitting = _SPLITTINGS.get(file.get("tokenizer.ggml.pre"), _Splitting())
    if splitting.ends[:1] == (tokens[ids["eos"]],):
        control = {token: i for i, token in enumerate(tokens) if kinds[i] == _CONTROL}
        stop_ids |= {control[token] for token in splitting.ends if token in control}
    return TextConfig(
        stop_ids=tuple(sorted(stop_ids)),
        chat_template=file.get("tokenizer.chat_template"),
        tool_template=file.get("tokenizer.chat_template.tool_use"),
        special_tokens=tuple(sorted(_special_tokens(file, tokens).items())),
    )


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    """Return the tokens that templates know by a name, such as "bos_token"."""
    return {f"{name}_token": tokens[i] for name, i in _ids(file, tokens).items() if name in _NAMED}


def _ids(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    """Return the ids of the tokens that have a role, by its name, each of them a token's."""
    stated = {name: file.get(_key(name)) for name in dict.fromkeys((*_NAMED, *_ENDS))}
    ids = {name: number for name, number in stated.items() if number is not None}
    for name, number in ids.items():
        if not 0 <= number < len(tokens):
            raise CheckpointError(
                f"{file.files[0]}: {_key(name)} is {number}, but there are {len(tokens)} tokens; convert the "
                "model again, or use its Hugging Face folder"
            )
    return ids


def _key(role: str) -> str:
    return f"tokenizer.ggml.{_KEYS.get(role, role)}_token_id"

"""The text of Hugging Face folders: whatever transformers makes of their tokenizer and template files.

Which of a folder's files decides what differs from release to release of transformers, and from class to
class of tokenizers. So transformers reads them, and its result is checked and kept
(docs/decisions/0016-tokenizers-by-transformers.md).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from poss_export.errors import CheckpointError
from poss_export.targets.hf_config import quiet_transformers
from poss_export.targets.json_file import read_json
from poss_export.text import Text, TextConfig

_HIGHEST = 1 << 24  # id of a token
# What every reading of a folder must agree on: text as people write it, in the middle of a line.
_PLAIN = "The quick brown fox didn't pay 1234.50 € for  naïve 東京 jazz.\nWhy? def f(x):\n    return x\n\n"


def read_text(folder: Path) -> Text:
    """Return the tokenizer, the templates, the special tokens and the stop ids of a folder.

    Raises:
        CheckpointError: transformers cannot read them, or what it reads cannot be kept in one tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; write it with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    with _failures_translated(folder):
        file = _read_file(path)
        theirs = _open(folder)
        _refuse_what_the_file_cannot_hold(folder, theirs)
        tokenizer = theirs.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _check_plain_text(path, file, theirs)
        _check_stated_ids(folder, tokenizer)
        text = Text(tokenizer.to_str(), _config(folder, theirs))
        _check_same(folder, theirs, text)
    return text


@contextmanager
def _failures_translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries raise nothing narrower
        raise CheckpointError(
            f"{folder}: not a readable tokenizer ({error}); transformers must read it, and run no code "
            "of the folder: fetch it again"
        ) from error


def _config(folder: Path, theirs: Any) -> TextConfig:
    plain, with_tools = _chat_templates(folder, theirs.chat_template)
    control = getattr(theirs, "chat_control_tokens", None)
    return TextConfig(
        stop_ids=_stop_ids(folder, theirs.eos_token_id),
        chat_template=plain,
        tool_template=with_tools,
        special_tokens=tuple(sorted(theirs.special_tokens_map.items())),
        chat_control_tokens=None if control is None else tuple(control),
    )


def _open(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _refuse_what_the_file_cannot_hold(folder: Path, theirs: Any) -> None:
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    if not isinstance(theirs, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{folder}: transformers reads this tokenizer as {type(theirs).__name__}, which no "
            "tokenizer.json can hold; use a checkpoint with a fast tokenizer"
        )
    cleans = theirs.clean_up_tokenization_spaces and not isinstance(theirs.backend_tokenizer.model, BPE)
    for name, set_to in (
        ("split_special_tokens", theirs.split_special_tokens),
        ("clean_up_tokenization_spaces", cleans),
    ):
        if set_to:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {name} is true, which is not supported; set it to false"
            )


def _read_file(path: Path) -> Any:
    """Return the tokenizer as tokenizer.json has it, whole prompts without padding."""
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(path))
    # Before anything writes it again: that goes through all numbers up to the highest.
    if (highest := max(file.get_vocab().values(), default=0)) > _HIGHEST:
        raise CheckpointError(
            f"{path}: a token has id {highest}, more than any target has tokens; fetch it again"
        )
    file.no_truncation()
    file.no_padding()
    return file


def _check_plain_text(path: Path, file: Any, theirs: Any) -> None:
    """Raise CheckpointError where the class that transformers chose reads plain text unlike the file."""
    ids = theirs.backend_tokenizer.encode(_PLAIN, add_special_tokens=False).ids
    if file.encode(_PLAIN, add_special_tokens=False).ids != ids:
        raise CheckpointError(
            f"{path}: transformers rebuilds this tokenizer as {type(theirs).__name__}, which reads plain "
            "text otherwise than the file; expected both to agree: in tokenizer_config.json set "
            "tokenizer_class to 'PreTrainedTokenizerFast', or use the tokenizer of the model in config.json"
        )


def _check_stated_ids(folder: Path, tokenizer: Any) -> None:
    """Raise CheckpointError where a token that a companion file adds did not get the id that it states."""
    companion = read_json(folder / "tokenizer_config.json", {}).get("added_tokens_decoder") or {}
    stated = {_content(token): int(number) for number, token in companion.items()}
    stated |= read_json(folder / "added_tokens.json", {})
    for content, number in stated.items():
        if (found := tokenizer.token_to_id(content)) != number:
            raise CheckpointError(
                f"{folder}: the token {content!r} has id {number} in tokenizer_config.json or "
                f"added_tokens.json, and {found} in the tokenizer; fetch all these files again"
            )


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _check_same(folder: Path, theirs: Any, ours: Text) -> None:
    """Raise CheckpointError where the text that is kept is not what transformers reads and writes."""
    said = f"{_PLAIN}{' '.join(theirs.added_tokens_encoder)} {_PLAIN}"
    ids = theirs.encode(said)
    if ours.encode(said) != ids or ours.decode(ids) != theirs.decode(ids, skip_special_tokens=True):
        raise CheckpointError(
            f"{folder}: {type(theirs).__name__} does more to text than its tokenizer.json can hold; to do "
            "without, set tokenizer_class in tokenizer_config.json to 'PreTrainedTokenizerFast'"
        )


def _stop_ids(folder: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    config = read_json(folder / "config.json")
    files = (read_json(folder / "generation_config.json", {}), config)
    found = [values["eos_token_id"] for values in files if values.get("eos_token_id") is not None]
    stated = [one for value in found for one in (value if isinstance(value, list) else [value])]
    ids = {one for one in stated if one is not None}  # some lists hold a null
    if wrong := [one for one in ids if type(one) is not int or one < 0]:
        raise CheckpointError(
            f"{folder}: eos_token_id holds {shortened(wrong[0])}; expected numbers of tokens"
        )
    if tokenizer_eos is not None and tokenizer_eos < config["vocab_size"]:
        ids.add(tokenizer_eos)  # a class may invent one that the model does not have
    return tuple(sorted(ids))


def _chat_templates(folder: Path, found: str | Mapping[str, str] | None) -> tuple[str | None, str | None]:
    """Return the template, and the one for dialogues with tools where there is another."""
    if found is None or isinstance(found, str):
        return found, None
    if "default" not in found:
        raise CheckpointError(
            f"{folder}: of its chat templates {', '.join(sorted(found))} none is the default; "
            "copy the one to use to chat_template.jinja"
        )
    return found["default"], found.get("tool_use")

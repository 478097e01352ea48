"""Every file that is read may be anything: it is used, or one of our errors says what is wrong."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st

from poss_export.acceptance import AcceptanceCurves
from poss_export.bundling.facts import facts_of
from poss_export.calibration.record import Record, load_record, save_record
from poss_export.cli.cards import bundle_card
from poss_export.costs import Costs
from poss_export.drafters.checkpoint import load_drafter, save_drafter
from poss_export.errors import PossExportError
from poss_export.evaluation.text_quality import read_windows
from poss_export.exporters.linter import lint
from poss_export.manifest import MANIFEST, _own_hash
from poss_export.prompts import read_prompts
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.planning.planners import read_corpus
from poss_export.targets.checkpoint import open_target
from poss_export.text import Text
from poss_export.training.dialogues import Dialogues
from tests.fixtures.public_checkpoints import TINY, eagle, write
from tests.fixtures.spoil import is_json, spoilt_bytes, spoilt_json
from tests.fixtures.write_gguf import Vocabulary, write_gguf
from tests.test_costs import COSTS, FINGERPRINT

ROLES = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", *(f"<0x{i:02X}>" for i in range(88))]


@dataclass(frozen=True)
class Reader:
    """A file, what reads it, and what makes JSON values its content again."""

    file: Path
    read: Callable[[], object]
    dump: Callable[[Any], str] = json.dumps


def rehashed(values: Any) -> str:
    """A manifest whose hashes are right: an edit by somebody who knows how, or another release's."""
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if not name.endswith("_sha256")}
        values["field_sha256"] = {name: _own_hash(value) for name, value in values.items()}
        values["manifest_sha256"] = _own_hash(values)
    return json.dumps(values)


def look_at(target: Path) -> None:
    """Open a target as far as a plan does."""
    opened = open_target(str(target))
    assert opened.parameters > 0
    assert opened.text.encode("a") is not None
    opened.load_decoder()


@pytest.fixture(scope="module")
def readers(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Callable[[str], Path],
    tiny_bundle: Path,
    random_drafter: Callable[..., Any],
    fitted: AcceptanceCurves,
    record: Record,
    byte_text: Text,
) -> dict[str, Reader]:
    folder = tmp_path_factory.mktemp("readers")
    target = Path(shutil.copytree(tiny_folder("llama"), folder / "target"))
    for name, values in (
        ("generation_config.json", {"eos_token_id": [2, 5]}),
        ("tokenizer_config.json", {"eos_token": "<2>", "chat_template": "{{ messages }}"}),
    ):
        (target / name).write_text(json.dumps(values))
    old = Path(shutil.copytree(target, folder / "old"))
    (old / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(64)}, old / "pytorch_model.bin")
    shards = Path(shutil.copytree(target, folder / "shards"))
    names = {"weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": "model.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(names))
    facts = open_target(str(target)).config
    save_drafter(folder / "ours", random_drafter(facts, 3), "0" * 64, torch.float32)
    layout = eagle(TINY)
    write(folder / "release", layout.config, layout.random())
    bundle = Path(shutil.copytree(tiny_bundle, folder / "bundle"))
    write_gguf(folder / "target.gguf", target, "llama")
    pieces = Vocabulary(
        "llama", None, PIECES, [TokenType.NORMAL] * 96, scores=[-float(i) for i in range(96)], facts=ROLES
    )
    write_gguf(folder / "pieces.gguf", target, "llama", pieces)
    split = write_gguf(folder / "split.gguf", target, "llama", tensors_a_file=12)
    fitted.save(folder / "acceptance.json")
    COSTS.save(folder / "costs.json")
    save_record(record, folder / "record.npz")
    Dialogues.from_answers([([1, 2], [3]), ([4], [5, 6])], 0.5).save(folder / "dialogues.npz")
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"turns": ["b", "c"], "id": 7}\n')
    (folder / "text.txt").write_text("some words " * 40)
    shutil.copy(bundle / "draft.onnx", folder / "draft.onnx")

    def inspect_bundle() -> None:
        open_bundle(bundle, threads=1)
        found: Any = facts_of(str(bundle))
        bundle_card(found)
        found.to_dict()

    readers = {
        f"{opened.name}/{name}": Reader(opened / name, partial(look_at, opened))
        for opened, names in (
            (target, ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")),
            (target, ("model.safetensors",)),
            (old, ("pytorch_model.bin",)),
            (shards, ("model.safetensors.index.json",)),
        )
        for name in names
    }
    for name in ("target.gguf", "pieces.gguf"):
        readers[name] = Reader(folder / name, partial(look_at, folder / name))
    readers["split.gguf"] = Reader(folder / "split-00002-of-00002.gguf", partial(look_at, split))
    for name in ("ours", "release"):
        for file in ("config.json", "model.safetensors"):
            spec = str(folder / name)
            readers[f"{name}/{file}"] = Reader(Path(spec, file), partial(load_drafter, spec))
    readers["inspect"] = Reader(folder / "release/config.json", partial(facts_of, str(folder / "release")))
    readers["manifest.json"] = Reader(bundle / MANIFEST, inspect_bundle, rehashed)
    others: dict[str, Callable[[Path], object]] = {
        "acceptance.json": AcceptanceCurves.load,
        "costs.json": lambda file: Costs.load(file, FINGERPRINT).by_width(64),
        "prompts.jsonl": read_prompts,
        "record.npz": load_record,
        "dialogues.npz": Dialogues.load,
        "draft.onnx": lint,
        "text.txt": lambda file: (read_corpus(file, byte_text), read_windows(byte_text, 48, file)),
    }
    for name, read in others.items():
        readers[name] = Reader(folder / name, partial(read, folder / name))
    return readers


READERS = (
    *(f"target/{name}" for name in ("config.json", "generation_config.json", "tokenizer_config.json")),
    *("target/tokenizer.json", "target/model.safetensors", "old/pytorch_model.bin"),
    *("shards/model.safetensors.index.json", "ours/config.json", "ours/model.safetensors"),
    *("target.gguf", "pieces.gguf", "split.gguf"),
    *("release/config.json", "release/model.safetensors", "inspect", "manifest.json", "acceptance.json"),
    *("costs.json", "prompts.jsonl", "record.npz", "dialogues.npz", "draft.onnx", "text.txt"),
)


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_spoilt_file_is_read_or_refused(name: str, readers: dict[str, Reader], data: st.DataObject) -> None:
    reader = readers[name]
    content = reader.file.read_bytes()
    if is_json(content) and data.draw(st.integers(0, 3)):
        spoilt = reader.dump(data.draw(spoilt_json(json.loads(content)))).encode()
    else:
        spoilt = data.draw(spoilt_bytes(content))
    try:
        reader.file.write_bytes(spoilt)
        with suppress(PossExportError):
            reader.read()
    finally:
        reader.file.write_bytes(content)


def test_the_readers_read_what_is_whole(readers: dict[str, Reader]) -> None:
    assert set(READERS) == set(readers)
    for name in READERS:
        if name not in ("old/pytorch_model.bin", "text.txt"):
            readers[name].read()

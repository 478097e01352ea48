"""`poss-export build` on tiny models: what it prints, and one clear message for every bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poss_export.config import TreeShape
from poss_export.manifest import read_manifest
from tests.cli.command import done, refused, write_drafter


def test_build_says_what_it_made(bundle: Path, target: Path, drafter: Path) -> None:
    manifest = read_manifest(bundle, full=True)
    assert manifest.argv[:4] == ("poss-export", "build", str(target), "--drafter")
    assert manifest.drafter is not None
    assert manifest.drafter.name == drafter.name
    assert manifest.drafter.tree.nodes == 8
    assert manifest.capacity == 48
    assert set(manifest.parity) == {"target_features", "target_logits", "draft_scores"}


def test_a_dry_run_prints_the_plan_and_writes_nothing(target: Path, drafter: Path, tmp_path: Path) -> None:
    result = done("build", target, "--drafter", drafter, "-o", tmp_path / "new/bundle", "--dry-run")
    assert not list(tmp_path.iterdir())
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["drafter.tree.nodes"].strip() == str(TreeShape().nodes)
    assert rows["capacity"].strip() == "128"  # this target's longest context
    assert rows["cache_bytes.target"].strip() == f"{2 * 2 * 2 * 128 * 16 * 4:,}"  # K, V; layers, heads, ...


def test_a_drafter_for_other_weights_is_pointed_out(
    tiny_folder: Callable[[str], Path], drafter: Path, tmp_path: Path
) -> None:
    result = done("build", tiny_folder("llama3"), "--drafter", drafter, "-o", tmp_path / "b", "--dry-run")
    assert result.stderr.startswith("warning: drafter 'tiny-poss-2' was trained for other weights")
    assert len(result.stderr.splitlines()) == 1


def test_build_refuses_what_it_cannot_open(target: Path, drafter: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("-o", output)
    assert "neither a folder nor a .gguf file" in refused("build", tmp_path / "none", *options)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json: cannot be read as JSON" in refused("build", empty, *options)
    assert "neither a folder nor a shipped drafter" in refused(
        "build", target, "--drafter", "poss-99", *options
    )
    assert "config.json: not readable" in refused("build", target, "--drafter", empty, *options)
    assert not output.exists()


def edited(folder: Path, target: Path, **values: Any) -> Path:
    """Return a copy of the target with these values in its config.json."""
    shutil.copytree(target, folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))
    return folder


def test_build_refuses_another_architecture(target: Path, tmp_path: Path) -> None:
    other = edited(tmp_path / "gpt2", target, model_type="gpt2")
    message = refused("build", other, "-o", tmp_path / "out")
    assert "'gpt2' is not supported; this version knows llama" in message


def test_build_refuses_stop_tokens_beyond_the_vocabulary(target: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(target, tmp_path / "other"))
    (other / "generation_config.json").write_text('{"eos_token_id": [2, 96]}')
    message = refused("build", other, "-o", tmp_path / "out", "--dry-run")
    assert "target 'other' stops at token 96, but has 96 tokens: mend eos_token_id" in message


def test_build_refuses_a_bundle_as_target(bundle: Path, tmp_path: Path) -> None:
    message = refused("build", bundle, "-o", tmp_path / "out")
    assert "is a bundle, which was built already; give the target that it was built from" in message


@pytest.mark.parametrize(("fact", "value"), [("hidden_size", 32), ("vocab_size", 100)])
def test_build_refuses_a_drafter_of_another_size(
    fact: str, value: int, target: Path, random_drafter: Any, tmp_path: Path
) -> None:
    other = write_drafter(tmp_path / "other", target, random_drafter, **{fact: value})
    message = refused("build", target, "--drafter", other, "-o", tmp_path / "out")
    assert f"the drafter's {fact} is {value}, the target's is" in message
    assert not (tmp_path / "out").exists()


def truncated(source: Path, folder: Path, name: str) -> Path:
    """Return a copy of `source` with the last bytes of one file missing."""
    shutil.copytree(source, folder)
    (folder / name).write_bytes((source / name).read_bytes()[:-100])
    return folder


def test_build_refuses_truncated_weights(target: Path, drafter: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out")
    broken = truncated(target, tmp_path / "target", "model.safetensors")
    assert "model.safetensors: not a readable weight file" in refused("build", broken, *output)
    broken = truncated(drafter, tmp_path / "drafter", "model.safetensors")
    assert "model.safetensors: not a readable weight file" in refused(
        "build", target, "--drafter", broken, *output
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--capacity", 129), "capacity is 129 tokens; this target was made for 1 to 128"),
        (("--capacity", 8), "capacity is 8 tokens; a bundle needs at least 32"),
        (("--tree-nodes", 99), "tree nodes is 99, but depth 4 and top-k 4 give only 52 candidates"),
        (("--tree-depth", 0), "tree depth is 0; it must be at least 1"),
        (("--top-k", 61, "--capacity", 48), "tree top-k is 61, but the drafter knows 60"),
    ],
)
def test_build_refuses_impossible_shapes(
    options: tuple[Any, ...], message: str, target: Path, drafter: Path, tmp_path: Path
) -> None:
    assert message in refused("build", target, "--drafter", drafter, "-o", tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_build_keeps_what_is_there(target: Path, copy: Path, tmp_path: Path) -> None:
    before = (copy / "manifest.json").read_bytes()
    message = refused("build", target, "-o", copy)
    assert "exists, and it has another drafter: choose another output folder" in message
    assert message.endswith(", or replace it (--force)")
    assert (copy / "manifest.json").read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").touch()
    assert "exists and is not a bundle" in refused("build", target, "-o", notes, "--force")
    assert [path.name for path in notes.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        (
            "config.json",
            {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
            "target configuration (rope.theta was 10000.0, is 5000.0)",
        ),
        ("config.json", {"rms_norm_eps": 1e-4}, "target configuration (rms_norm_eps was 1e-06, is 0.0001)"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "tokenizer"),
        ("generation_config.json", {"eos_token_id": 7}, "text (stop_ids was (2,), is (2, 7))"),
    ],
)
def test_build_notices_every_file_of_the_target(
    file: str, change: dict[str, Any], what: str, target: Path, tmp_path: Path
) -> None:
    """The weights are the same ones, so their hash does not tell."""
    changed = Path(shutil.copytree(target, tmp_path / target.name))
    given = ("--capacity", 48, "-o", tmp_path / "out")
    done("build", changed, *given)
    assert "is unchanged: nothing to build" in done("build", changed, *given).stderr
    path = changed / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **change}))
    assert f"it has another {what}: choose another output folder" in refused("build", changed, *given)


def test_build_notices_another_configuration_of_the_drafter(
    target: Path, drafter: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(drafter, tmp_path / drafter.name))
    given = ("--drafter", changed, "--capacity", 48, "--tree-depth", 2, "-o", tmp_path / "out")
    done("build", target, *given)
    path = changed / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "rms_norm_eps": 1e-3}))
    assert "it has another drafter configuration" in refused("build", target, *given)


def test_build_refuses_an_unwritable_place(target: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to" in refused("build", target, "-o", tmp_path / "file/out")

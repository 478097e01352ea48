"""The command line on tiny models: what it prints, and one clear message for every bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from poss_export.cli.main import main
from poss_export.config import TreeShape
from poss_export.drafters.checkpoint import save_drafter
from poss_export.manifest import describe_files, read_manifest, write_manifest
from poss_export.targets.checkpoint import open_target

Tiny = Callable[[str], Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """Return the one line on stderr of a command that must fail."""
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def target(tiny_folder: Tiny) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def drafter(target: Path, random_drafter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter folder for the tiny target."""
    return write_drafter(tmp_path_factory.mktemp("drafters") / "tiny-poss-2", target, random_drafter)


def write_drafter(folder: Path, target: Path, random_drafter: Any, **other: Any) -> Path:
    """Write a random drafter for `target`, or for one that differs in `other`."""
    import torch

    opened = open_target(str(target))
    save_drafter(folder, random_drafter(replace(opened.config, **other), 3), opened.sha256, torch.float32)
    return folder


@pytest.fixture(scope="module")
def bundle(target: Path, drafter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `build` makes of both."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    done("build", target, "--drafter", drafter, "-o", folder, "--capacity", 48, "--tree-nodes", 8)
    return folder


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be spoilt."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from poss_export.cli.main import main
try:
    main(["build", "--help"])
except SystemExit:
    pass
print(sorted({"numpy", "torch", "onnx", "onnxruntime", "tokenizers", "rich", "jinja2"} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "--tree-depth" in result.stdout


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


def test_a_drafter_for_other_weights_is_pointed_out(tiny_folder: Tiny, drafter: Path, tmp_path: Path) -> None:
    result = done("build", tiny_folder("llama3"), "--drafter", drafter, "-o", tmp_path / "b", "--dry-run")
    assert result.stderr.startswith("warning: drafter 'tiny-poss-2' was trained for other weights")
    assert len(result.stderr.splitlines()) == 1


def test_generate_prints_text_and_a_summary(bundle: Path) -> None:
    result = done("generate", bundle, "<5> <7>", "--raw", "--max-new-tokens", 6)
    assert len(result.stdout.split()) == 6
    assert "6 tokens in" in result.stderr
    assert result.stderr.endswith(", finish: length\n")


def test_speculative_and_target_only_json(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "<5>"}\n{"turns": ["<9> <4>"]}\n', encoding="utf-8")
    answers = {}
    for mode in ((), ("--target-only",)):
        result = done("generate", bundle, "<3>", "--prompts", prompts, "--raw", "--json", *mode)
        answers[mode] = [json.loads(line) for line in result.stdout.splitlines()]
        assert [answer["prompt"] for answer in answers[mode]] == ["<3>", "<5>", "<9> <4>"]
        assert result.stderr.splitlines()[-1].startswith("3 answers: ")
    ours, plain = answers.values()
    assert [a["token_ids"] for a in ours] == [a["token_ids"] for a in plain]
    assert (
        plain[0].keys()
        == ours[0].keys()
        >= {
            *("prompt", "text", "token_ids", "tokens", "seconds", "tokens_per_second"),
            *("rounds", "tau", "accepted_by_depth", "finish_reason"),
        }
    )


def test_sampling_options_reach_the_sampler(bundle: Path) -> None:
    def sampled(*options: object) -> list[int]:
        result = done("generate", bundle, "<5>", "--raw", "--json", "--max-new-tokens", 12, *options)
        tokens: list[int] = json.loads(result.stdout)["token_ids"]
        return tokens

    greedy = sampled()
    for narrow in (("--top-k", 1), ("--top-p", 1e-6), ("--min-p", 1)):
        assert sampled("--temperature", 5, *narrow) == greedy
    seeds = [sampled("--temperature", 5, "--seed", seed) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_stop_string_ends_the_answer(bundle: Path) -> None:
    words = done("generate", bundle, "<5>", "--raw", "--max-new-tokens", 8).stdout.split()
    result = done("generate", bundle, "<5>", "--raw", "--stop", words[4])
    assert result.stdout.split() == words[: words.index(words[4])]


@pytest.mark.parametrize("kind", ["bundle", "drafter", "target"])
def test_inspect_tells_what_a_thing_is(kind: str, request: pytest.FixtureRequest) -> None:
    thing = request.getfixturevalue(kind)
    facts = json.loads(done("inspect", thing, "--json").stdout)
    assert facts["kind"] == kind
    config = facts["drafter"]["config"] if kind == "bundle" else facts["config"]
    assert config["hidden_size"] == 64
    table = done("inspect", thing).stdout
    assert ["kind", kind] in [line.split() for line in table.splitlines()]
    assert any(line.split()[0].endswith("config.hidden_size") for line in table.splitlines())


def checks(*arguments: object) -> dict[str, dict[str, Any]]:
    lines = run("verify", *arguments, "--json", "--max-new-tokens", 12, "--draws", 1200).stdout.splitlines()
    return {check["name"]: check for check in map(json.loads, lines)}


NAMES = [
    "files",
    "parity: target features",
    "parity: target logits",
    "parity: draft scores",
    "n tokens = n steps",
    "tree = its paths",
    "commit = fresh run",
    "draft rows at once = in parts",
    "greedy: speculative = target-only",
    "sampling: distribution",
]


def test_verify_passes_what_was_built(bundle: Path, target: Path, drafter: Path) -> None:
    made = checks(bundle, "--target", target, "--drafter", drafter)
    assert sorted(made) == sorted(NAMES)
    assert all(check["passed"] is True for check in made.values()), made
    assert "8 prompts, 96 tokens, 0 mismatches" in made["greedy: speculative = target-only"]["detail"]


def test_verify_skips_parity_without_the_checkpoints(bundle: Path, target: Path) -> None:
    result = run("verify", bundle, "--num-prompts", 1, "--max-new-tokens", 2, "--draws", 8)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[3] for row in rows if row[:1] == ["parity:"]] == ["skipped"] * 3
    without_drafter = checks(bundle, "--target", target, "--num-prompts", 1)
    assert without_drafter["parity: target logits"]["passed"] is True
    assert without_drafter["parity: draft scores"]["passed"] is None
    assert "--drafter" in without_drafter["parity: draft scores"]["detail"]


def test_verify_fails_a_bundle_of_other_weights(copy: Path, target: Path, drafter: Path) -> None:
    """Its manifest is right and its engines agree with each other: only PyTorch knows better."""
    manifest = read_manifest(copy)
    data = copy / "target.onnx.data"
    weights = bytearray(data.read_bytes())
    weights[:4096] = bytes(4096)  # the first tokens' embeddings
    data.write_bytes(weights)
    write_manifest(copy, replace(manifest, files=describe_files(copy, manifest.files)))
    options = ("--target", target, "--drafter", drafter, "--max-new-tokens", 2, "--draws", 8)
    result = run("verify", copy, *options, "--num-prompts", 1)
    assert result.exit_code == 1
    failed = [line.split()[1:3] for line in result.stdout.splitlines() if "FAILED" in line]
    assert ["target", "logits"] in failed


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
        (("--tree-nodes", 99), "tree nodes is 99, but depth 5 and top-k 4 give only 68 candidates"),
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
    assert "exists: choose another output folder, or replace it with --force" in refused(
        "build", target, "-o", copy
    )
    assert (copy / "manifest.json").read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").touch()
    assert "exists and is not a bundle" in refused("build", target, "-o", notes, "--force")
    assert [path.name for path in notes.iterdir()] == ["mine.txt"]


def test_build_refuses_an_unwritable_place(target: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to" in refused("build", target, "-o", tmp_path / "file/out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("<5>", "--temperature", -1), "temperature is -1.0; it must be 0 (greedy) or at least 1e-6"),
        (("<5>", "--max-new-tokens", 0), "max_new_tokens is 0; it must be at least 1"),
        (("",), "the prompt is empty"),
        ((), "no prompt; write one behind the bundle"),
        (("<5> " * 49,), "the prompt has 49 tokens, the bundle's capacity is 48: shorten the prompt"),
        (("<5>", "--threads", 0), "threads is 0; it must be at least 1"),
        (("--prompts", "nowhere.jsonl"), "'nowhere.jsonl' cannot be read"),
    ],
)
def test_generate_refuses_bad_requests(arguments: tuple[Any, ...], message: str, bundle: Path) -> None:
    assert message in refused("generate", bundle, "--raw", *arguments)


def test_generate_needs_a_chat_template_or_raw(bundle: Path) -> None:
    assert "no chat template; pass the prompt as plain text (--raw)" in refused("generate", bundle, "<5>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<5>", "line 2 has no prompt"),
        ('{"text": "<5>"}', "line 2 has no prompt"),
        ('{"turns": []}', "line 2 has no prompt"),
        ("[]", "line 2 has no prompt"),
        ('{"prompt": 5}', "line 2: the prompt is 5; expected a string"),
    ],
)
def test_generate_refuses_a_damaged_prompt_file(
    line: str, message: str, bundle: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "<5>"}}\n{line}\n')
    assert message in refused("generate", bundle, "--prompts", prompts, "--raw")


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_spoilt_bundles_are_refused(command: str, copy: Path, tmp_path: Path) -> None:
    rest = ("<5>", "--raw") if command == "generate" else ()
    assert "no bundle folder at" in refused(command, tmp_path / "none", *rest)
    assert "has no manifest.json" in refused(command, tmp_path, *rest)
    whole = (copy / "target.onnx.data").read_bytes()
    (copy / "target.onnx.data").write_bytes(whole[:-1])
    assert "bytes, the manifest says" in refused(command, copy, *rest)
    (copy / "target.onnx.data").write_bytes(whole)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"capacity": 48', '"capacity": 64'))
    assert "was changed after the build: its hash does not match" in refused(command, copy, *rest)


def test_inspect_refuses_what_is_nothing(tmp_path: Path) -> None:
    assert "neither a folder nor a .gguf file" in refused("inspect", tmp_path / "none")


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "smollm2-135m", "-o", "bundle"),
        ("train", "smollm2-135m", "--preset", "eagle", "-o", "drafter"),
        ("inspect", "smollm2-135m"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_deployment_says_which_extra_is_missing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from poss_export.cli.main import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        "error: this command needs torch, which is not installed: pip install 'poss-export[export]'\n"
    )
    assert not list(tmp_path.iterdir())

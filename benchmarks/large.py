"""What the export of a target of a published size takes: peak memory, time and disk, beside the estimate.

    python -m benchmarks.large llama-3-8b --precision fp16 --cache-form static
    python -m benchmarks.large llama-3.2-1b --precision fp32 --cache-form shared --draft-vocab 16384 --use
    python -m benchmarks.large llama-3.2-1b --precision fp16 --cache-form static --engines 8.9

Weights are random numbers in bfloat16, written to a folder that is removed, as is the bundle. `--layers`
leaves layers out: the peak does not depend on their number. `--draft-vocab` builds with an EAGLE drafter
of the target's whole vocabulary, cut to so many tokens; `--no-acceptance` leaves out what runs whole graphs.
`--engines` builds TensorRT-RTX's for a device of that compute capability, too. `--use` verifies the bundle,
lets it answer, and profiles it.
"""

import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import click
import numpy as np

from offline.processes import COMMAND

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
COMMON = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARD = 5_000_000_000  # bytes


def tensors(facts: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor of a checkpoint, and its shape."""
    hidden, inner = facts["hidden_size"], facts["intermediate_size"]
    rows = {"q": facts["num_attention_heads"], "k": facts["num_key_value_heads"]}
    rows["v"] = rows["k"]
    yield "model.embed_tokens.weight", (facts["vocab_size"], hidden)
    for index in range(facts["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for part, heads in rows.items():
            yield f"{layer}.self_attn.{part}_proj.weight", (heads * facts["head_dim"], hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, rows["q"] * facts["head_dim"])
        if facts["model_type"] == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (facts["head_dim"],)
            yield f"{layer}.self_attn.k_norm.weight", (facts["head_dim"],)
        for part in ("gate", "up"):
            yield f"{layer}.mlp.{part}_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
        for norm in ("input", "post_attention"):
            yield f"{layer}.{norm}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not facts["tie_word_embeddings"]:
        yield "lm_head.weight", (facts["vocab_size"], hidden)


def drafter_tensors(facts: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of an EAGLE drafter, which has no head and no input norm."""
    one_layer = tensors({**facts, "model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": True})
    inside = {name.removeprefix("model."): shape for name, shape in one_layer}
    for name in ("embed_tokens.weight", "norm.weight", "layers.0.input_layernorm.weight"):
        del inside[name]
    return {"fc.weight": (facts["hidden_size"], 2 * facts["hidden_size"]), **inside}


def shards(facts: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of a checkpoint by file; a file ends where it would exceed SHARD bytes."""
    files, size = [dict[str, tuple[int, ...]]()], 0
    for name, shape in tensors(facts):
        size += 2 * prod(shape)
        if files[-1] and size > SHARD:
            files, size = [*files, {}], 2 * prod(shape)
        files[-1][name] = shape
    return files


def random_block() -> bytes:
    """Return random numbers in bfloat16, of a spread of 0.02."""
    numbers = np.random.default_rng(0).normal(0, 0.02, 4_000_037).astype(np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bfloat16 is the upper half


def write_shard(shapes: dict[str, tuple[int, ...]], block: bytes, path: Path) -> None:
    """Write a file of weights in bfloat16: norms are ones, other weights come from `block`."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            left = 2 * prod(shape)
            if len(shape) == 1:
                file.write(np.full(left // 2, 0x3F80, np.uint16).tobytes())  # ones
                continue
            while left:
                left -= file.write(block[:left])


def write_checkpoint(facts: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint in shards: norms are ones, other weights random."""
    from poss_export.targets.checkpoint import EMBEDDED_TARGET, open_target

    (folder / "config.json").write_text(json.dumps({**COMMON, **facts}))
    (folder / "tokenizer.json").write_text(open_target(EMBEDDED_TARGET).text.tokenizer_json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    block = random_block()
    files, places = shards({**COMMON, **facts}), dict[str, str]()
    for number, shapes in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        write_shard(shapes, block, folder / name)
        places |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_drafter(facts: dict[str, Any], folder: Path) -> None:
    """Write an EAGLE drafter, as it is released: it proposes the whole vocabulary."""
    folder.mkdir()
    values = {**COMMON, **facts, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(values))
    write_shard(drafter_tensors(values), random_block(), folder / "model.safetensors")


def run(*words: object) -> tuple[float, int]:
    """Run a command in a process of its own; return its seconds and its peak of resident memory in bytes."""
    command = [*COMMAND, *map(str, words)]
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words[0]} failed with status {status}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def use(bundle: Path, checkpoint: Path, drafter: Path | None) -> None:
    """Verify, answer and profile; print what each took."""
    places = ["--target", checkpoint, *([] if drafter is None else ["--drafter", drafter])]
    few = ["--num-prompts", 1, "--max-new-tokens", 8, "--draws", 100]
    words = {
        "verify": ["verify", bundle, *places, *few],
        "generate": ["generate", bundle, "Why is the sky blue?", "--max-new-tokens", 16, "--raw"],
        "profile": ["profile", bundle, "--context", 128, "--repeats", 3],
    }
    for name, command in words.items():
        seconds, peak = run(*command)
        print(f"{name}: {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}")


def print_engines(bundle: Path, estimates: dict[str, dict[str, int]]) -> None:
    """Print what each engine took, beside its estimate."""
    from poss_export.manifest import read_manifest

    manifest = read_manifest(bundle)
    for entry in manifest.engines:
        expected, size = estimates[entry.spec.graph], manifest.files[entry.spec.file].size
        print(
            f"engine of the {entry.spec.graph}: {entry.build_seconds:.0f} s, peak memory "
            f"{entry.peak_memory / 1e9:.2f} GB, estimated {expected['peak_memory'] / 1e9:.2f}; "
            f"{size / 1e9:.2f} GB, estimated {expected['engine'] / 1e9:.2f}"
        )


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.option("--precision", default="fp16")
@click.option("--cache-form", default="static")
@click.option("--layers", type=int, help="Of the target; all, if left out.")
@click.option("--vocab", type=int, help="Of the target; the published one, if left out.")
@click.option("--draft-vocab", type=int, help="Build with a drafter that is cut to so many tokens.")
@click.option("--no-acceptance", is_flag=True, help="Learn nothing of the drafter.")
@click.option("--engines", metavar="X.Y", help="Build TensorRT-RTX's for that compute capability.")
@click.option("--use", "used", is_flag=True, help="Verify, answer and profile, too.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where there is room for it.")
def main(
    shape: str,
    precision: str,
    cache_form: str,
    layers: int | None,
    vocab: int | None,
    draft_vocab: int | None,
    no_acceptance: bool,
    engines: str | None,
    used: bool,
    folder: Path | None,
) -> None:
    """Write a checkpoint of SHAPE, build it and say what that took."""
    from poss_export.bundling.estimate import estimate_export
    from poss_export.bundling.request import BuildRequest, plan
    from poss_export.engine_spec import EngineOptions

    given = {"num_hidden_layers": layers, "vocab_size": vocab}
    facts = SHAPES[shape] | {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        checkpoint, drafter, bundle = (Path(name) / part for part in (shape, "eagle", "bundle"))
        checkpoint.mkdir()
        write_checkpoint(facts, checkpoint)
        request: Any = {"precision": precision, "cache_form": cache_form}
        loose = ["--max-perplexity", 9e9, "--min-agreement", 0, "--min-tau", 0]  # random weights suffer more
        options = [] if precision in ("fp32", "fp16", "bf16") else loose
        if draft_vocab is not None:
            write_drafter(facts, drafter)
            request |= {"drafter": str(drafter), "draft_vocab_size": draft_vocab, "draft_precision": "float"}
            options += ["--drafter", drafter, "--draft-vocab", draft_vocab, "--draft-precision", "float"]
        if no_acceptance:
            request["acceptance"] = False
            options.append("--no-acceptance")
        if engines is not None:
            request |= {"backend": "tensorrt-rtx", "engines": EngineOptions((engines,))}
            options += ["--backend", "tensorrt-rtx", "--compute-capability", engines]
        planned = plan(BuildRequest(str(checkpoint), **request))
        expected = estimate_export(planned)
        form = ["--precision", precision, "--cache-form", cache_form]
        seconds, peak = run("build", checkpoint, "-o", bundle, *form, *options)
        disk = sum(file.stat().st_size for file in bundle.iterdir())
        size = f"{facts['num_hidden_layers']} layers, {precision} {cache_form}"
        print(f"{shape}, {size}, load {os.getloadavg()[0]:.1f}")
        print(f"peak memory {peak / 1e9:.2f} GB, estimated {expected.peak_memory / 1e9:.2f}")
        print(f"{seconds:.0f} s, estimated {expected.seconds}")
        print(f"disk {disk / 1e9:.2f} GB, estimated {expected.disk / 1e9:.2f}", flush=True)
        if engines is not None:
            print_engines(bundle, planned.to_dict()["engines"]["estimates"])
        if used:
            use(bundle, checkpoint, drafter if draft_vocab else None)


if __name__ == "__main__":
    main()

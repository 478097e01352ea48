"""Steps of `benchmarks.hardware` that no other command makes; each prints its findings as lines of JSON."""

import importlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from benchmarks import environment, questions
from poss_export.engine_spec import MODULES
from poss_export.evaluation.latency import target_calls
from poss_export.exporters.engine_worker import listener
from poss_export.manifest import DRAFT_GRAPH, TARGET_GRAPH, read_manifest
from poss_export.prompts import read_prompts, spread
from poss_export.runtime.bundle import contracts_of, open_bundle
from poss_export.runtime.sessions import cuda
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession, Provider

_QUERY = "name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.memory,power.limit"
_SLOTS = (1, 4, 8)
_TOKENS = 96  # of each answer
_PROVIDER = click.option("--provider", type=click.Choice(get_args(Provider)), default="cuda")
_BUNDLE = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))


def device() -> dict[str, str]:
    """Return what the driver says of device 0; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader", "--id=0"]
    with suppress(OSError, subprocess.CalledProcessError):
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return dict(zip(_QUERY.split(","), line.split(", "), strict=False))
    return {}


def providers_of(profile: Path) -> Counter[tuple[str, str]]:
    """Return how many nodes of each (provider, operator) ran, from the profile of one call."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    nodes = {event["name"]: event["args"] for event in events if event.get("cat") == "Node"}
    return Counter((node["provider"], node["op_name"]) for node in nodes.values() if "provider" in node)


def place_nodes(folder: Path, options: OrtOptions) -> Iterator[dict[str, Any]]:
    """Yield, for both graphs, nodes by provider, and the operators that the device does not run."""
    manifest = read_manifest(folder)
    contracts, capacity, vocab = contracts_of(manifest), manifest.capacity, manifest.target.config.vocab_size
    with tempfile.TemporaryDirectory() as name:
        options = OrtOptions(options.provider, profile=str(Path(name) / "profile"))
        of_target = folder / TARGET_GRAPH, contracts["target"], capacity, options
        with OrtTargetSession(*of_target) as target:
            target_calls(target, vocab, 8, (4,))[4]()
        yield _placed("target", Path(name))
    if manifest.drafter is None:
        return
    with tempfile.TemporaryDirectory() as name:
        options = OrtOptions(options.provider, profile=str(Path(name) / "profile"))
        table = manifest.target.embedding.open(folder)
        of_draft = folder / DRAFT_GRAPH, contracts["draft"], capacity, options, table
        features = next(spec for spec in contracts["draft"].inputs if spec.name == "features")
        assert isinstance(features.shape[-1], int)
        with OrtDraftSession(*of_draft) as drafter:
            drafter.propose(np.arange(4), np.ones((4, features.shape[-1]), features.dtype))
        yield _placed("draft", Path(name))


def _placed(graph: str, folder: Path) -> dict[str, Any]:
    (profile,) = folder.iterdir()
    nodes = providers_of(profile)
    by_provider, elsewhere = Counter[str](), Counter[str]()
    for (provider, operator), count in nodes.items():
        by_provider[provider] += count
        if provider == "CPUExecutionProvider" or operator.startswith("Memcpy"):
            elsewhere[operator] += count
    return {"graph": graph, "nodes": by_provider, "host_or_copies": elsewhere}


def answer_in_slots(folder: Path, provider: Provider, prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield tokens/s of all prompts asked at once, by slots; the second of two times, after a warm-up."""
    for slots in _SLOTS:
        with open_bundle(folder, provider=provider, slots=slots) as bundle:
            for _ in range(2):
                start = time.perf_counter()
                made = bundle.generate(list(prompts), max_new_tokens=_TOKENS, raw=not bundle.chats)
                took = time.perf_counter() - start
        tokens = sum(answer.tokens for answer in made)
        yield {"slots": slots, "answers": len(made), "tokens_per_second": round(tokens / took, 1)}


def ask_rtx() -> Iterator[dict[str, Any]]:
    """Yield what TensorRT-RTX says of this device: a one-node network, built for it and loaded."""
    trt = importlib.import_module(MODULES["tensorrt-rtx"])
    said: list[str] = []
    hears = listener(trt, lambda severity, message: said.append(f"{severity}: {message}"))
    builder = trt.Builder(hears)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tensor = network.add_input("x", trt.float32, (1, 8))
    network.mark_output(network.add_identity(tensor).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = None if plan is None else trt.Runtime(hears).deserialize_cuda_engine(plan)
    context = None if engine is None else engine.create_execution_context()
    yield {
        "version": trt.__version__,
        "device_capability": cuda.device_capability(),
        "built": plan is not None,
        "loaded": engine is not None,
        "ready": context is not None,
        "said": said[-20:],
    }


@click.group(help=__doc__)
def main() -> None:
    """Hold the commands."""


@main.command()
def machine() -> None:
    """Print what this machine is."""
    found = environment.record()
    del found["system"]  # of the kernel that happens to be there
    click.echo(json.dumps({**found, "device": device()}))


@main.command()
@_BUNDLE
@_PROVIDER
def placement(folder: Path, provider: Provider) -> None:
    """Print which nodes run where."""
    for found in place_nodes(folder, OrtOptions(provider)):
        click.echo(json.dumps(found))


@main.command()
@_BUNDLE
@_PROVIDER
def slots(folder: Path, provider: Provider) -> None:
    """Print the speed of several answers at once."""
    asked = [prompt.turns[0] for prompt in spread(read_prompts(questions.DEMO), max(_SLOTS))]
    for found in answer_in_slots(folder, provider, asked):
        click.echo(json.dumps(found))


@main.command(name="ask-rtx")
def ask() -> None:
    """Print what TensorRT-RTX says of this device."""
    for found in ask_rtx():
        click.echo(json.dumps(found))


@main.command(name="build-engines")
@click.argument("target")
@click.argument("drafter")
@click.argument("graphs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--compute-capability", help="Left out: that of the device.")
def build_engines(
    target: str, drafter: str, graphs: Path, folder: Path, compute_capability: str | None
) -> None:
    """Build TensorRT-RTX engines beside the graphs of a bundle in fp16, which stays as it is."""
    from poss_export.bundling.build import build_bundle
    from poss_export.bundling.request import BuildRequest, plan
    from poss_export.engine_spec import EngineOptions

    capability = compute_capability or cuda.device_capability()
    request = BuildRequest(
        target,
        drafter=drafter,
        precision="fp16",
        backend="tensorrt-rtx",
        engines=EngineOptions(compute_capabilities=(capability,)),
    )
    planned = plan(request)  # which refuses devices that the library does not know
    shutil.copytree(graphs, folder, copy_function=os.link)
    build_bundle(planned, folder)


if __name__ == "__main__":
    environment.run(main)

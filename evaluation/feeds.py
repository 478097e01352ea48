"""What graphs read in real calls, in the formats of tools that run a graph by itself: Polygraphy, trtexec."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.contract import GraphContract
from poss_export.engine_spec import GraphName
from poss_export.errors import BackendError, InputError
from poss_export.files import make_writable
from poss_export.manifest import GRAPHS
from poss_export.runtime.bundle import Bundle, contracts_of
from poss_export.runtime.loop import prefill
from poss_export.runtime.sampling import GREEDY
from poss_export.runtime.sequence import Sequence as Answer
from poss_export.runtime.sessions.base import PREFILL_CHUNK, Ints
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtSession, OrtTargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

Feed = Mapping[str, NDArray[Any]]
_OTHER = "choose another folder"


@dataclass(frozen=True)
class Call:
    """A call of a graph: what it is for, and every input by name."""

    name: str  # prefill, step, draft, verify
    graph: GraphName
    feed: Feed
    again: Callable[[], Any]  # makes it through the session


def real_calls(bundle: Bundle, prompt_ids: Sequence[int]) -> list[Call]:
    """Return an answer's first calls: a chunk of the prompt, a plain step, a draft, its verification.

    Of a prompt that is longer than a chunk the beginning is read.

    The caches of the `shared` form are cut behind the rows that a call reads and writes: the operator allows
    it. The sessions stay behind the prompt, where each call can be made again.

    Raises:
        BackendError: the bundle does not run in ONNX Runtime on the CPU.
        InputError: the prompt leaves no room for a round.
    """
    target, drafter = bundle.target, bundle.drafter
    if not isinstance(target, OrtTargetSession) or target.options.provider != "cpu":
        raise BackendError("feeds are read from ONNX Runtime on the CPU: open the bundle there")
    if len(prompt_ids) + 1 >= target.capacity:
        raise InputError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room in the capacity of {target.capacity}: "
            "choose a shorter one"
        )
    ids = np.asarray(prompt_ids[:PREFILL_CHUNK], dtype=np.int64)
    sequence = Answer(ids, verifier(GREEDY))
    calls = []

    def note(name: str, graph: GraphName, session: OrtSession, call: Callable[[], Any]) -> None:
        call()
        feed = {key: values.copy() for key, values in session.last_feed().items()}
        cut = _cut(feed) if bundle.manifest.cache_form == "shared" else feed
        calls.append(Call(name, graph, cut, call))

    for session in (target, drafter):
        if session is not None:
            session.reset()
    note("prefill", "target", target, partial(_read_all, target, ids))
    target.trim(0)
    prefill(target, drafter, sequence)
    note("step", "target", target, partial(target.forward, DraftTree.with_root(sequence.root)))
    if isinstance(drafter, OrtDraftSession):
        new, behind = sequence.take_unread(), drafter.length()
        note("draft", "draft", drafter, partial(_draft, drafter, behind, *new))
        tree = _draft(drafter, behind, *new).first(target.room())
        note("verify", "target", target, partial(target.forward, tree))
    return calls


def _read_all(target: OrtTargetSession, ids: Ints) -> None:
    target.trim(0)
    target.forward(DraftTree.chain(ids), np.array([len(ids) - 1]))
    target.commit(range(len(ids)))


def _draft(drafter: OrtDraftSession, behind: int, next_tokens: Ints, features: NDArray[Any]) -> DraftTree:
    drafter.trim(behind)
    return drafter.propose(next_tokens, features)


def _cut(feed: Feed) -> Feed:
    """Return a feed whose caches have as many rows as its call reads and writes."""
    new = feed["input_ids"] if "input_ids" in feed else feed["features"]
    rows = int(feed["past_length"].max()) + new.shape[1]
    return {name: values[:, :, :rows] if values.ndim == 4 else values for name, values in feed.items()}


def write_feeds(bundle: Bundle, prompt_ids: Sequence[int], folder: Path) -> list[str]:
    """Write the inputs of real calls to a new folder; return the command lines that use them.

    For each call NAME.json is what Polygraphy loads, `loader.py:NAME` a data loader of the same, and for
    engines NAME/ holds one raw file an input, which trtexec loads. `commands.sh` has the command lines.

    Raises:
        BackendError, InputError: as `real_calls`; or the folder exists, or cannot be written.
    """
    from polygraphy.json import save_json

    if folder.exists():
        raise InputError(f"{str(folder)!r} exists already: {_OTHER}", options=("output",))
    calls = real_calls(bundle, prompt_ids)
    make_writable(folder.parent, _OTHER)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for call in calls:
            save_json([dict(call.feed)], str(unfinished / f"{call.name}.json"))
            if bundle.manifest.cache_form == "static":
                (unfinished / call.name).mkdir()
                for name, values in call.feed.items():
                    values.tofile(unfinished / call.name / f"{name}.bin")
        (unfinished / "loader.py").write_text(_loader(calls), encoding="utf-8")
        lines = _commands(bundle, calls, folder.resolve())
        (unfinished / "commands.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {str(folder)!r} ({error.strerror}): {_OTHER}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return lines


def _loader(calls: Sequence[Call]) -> str:
    """Return a script with a data loader for each call, as `--data-loader-script` takes them."""
    functions = (
        f'\n\ndef {call.name}():\n    yield from load_json(str(HERE / "{call.name}.json"))\n'
        for call in calls
    )
    head = "from pathlib import Path\n\nfrom polygraphy.json import load_json\n\n"
    return f"{head}HERE = Path(__file__).resolve().parent\n{''.join(functions)}"


def _commands(bundle: Bundle, calls: Sequence[Call], folder: Path) -> list[str]:
    """Return the command lines, those of engines where the graphs are for engines."""
    lines = [f"polygraphy inspect data {folder / call.name}.json" for call in calls[:1]]
    contracts = contracts_of(bundle.manifest)
    for call in calls:
        graph = bundle.folder.resolve() / GRAPHS[call.graph]
        inputs = f"--load-inputs {folder / call.name}.json"
        lines.append(f"polygraphy run {graph} --onnxrt {inputs}")
        if bundle.manifest.cache_form == "static":
            shapes = _shapes(contracts[call.graph], call.feed)
            listed = " ".join(f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes.items())
            sizes = " ".join(f"--trt-{kind}-shapes {listed}" for kind in ("min", "opt", "max"))
            lines.append(f"polygraphy run {graph} --trt {sizes} {inputs}")
            pairs = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
            files = ",".join(f"{name}:{folder / call.name / name}.bin" for name in call.feed)
            lines.append(f"trtexec --onnx={graph} --shapes={pairs} --loadInputs={files}")
    return lines


def _shapes(contract: GraphContract, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs whose dimensions are not all fixed in the graph."""
    named = (spec.name for spec in contract.inputs if any(isinstance(dim, str) for dim in spec.shape))
    return {name: feed[name].shape for name in named}

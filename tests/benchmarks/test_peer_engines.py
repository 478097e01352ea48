"""Peers with their own speculation give the answers that they give without, in fewer calls of the target."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.answers import Answer, Engine
from benchmarks.peer_engines import (
    GENAI_NGRAMS,
    dejavuu,
    llama_cpp,
    onnxruntime_genai,
    openvino_genai,
    transformers,
)
from benchmarks.peers import Peers
from benchmarks.workers import Setup
from poss_export.targets.checkpoint import open_target
from tests.fixtures.write_gguf import write_gguf

CONVERTER = Path("out/peers/converter")
PROMPT = [7, 8, 9, 10, 7, 8, 9, 10, 7, 8]
TOKENS = 32


def needs(module: str) -> pytest.MarkDecorator:
    reason = f"needs {module}: pip install -c constraints.txt -r benchmarks/requirements.txt"
    return pytest.mark.skipif(find_spec(module) is None, reason=reason)


def check(plain: Engine, drafting: Engine) -> None:
    """Hold an engine to itself; what it repeats, and so finds again, comes from a random model's loops."""
    for engine in (plain, drafting):
        assert engine(PROMPT, TOKENS).token_ids == engine(PROMPT, TOKENS).token_ids
    alone, ours = plain(PROMPT, TOKENS), drafting(PROMPT, TOKENS)
    assert ours.token_ids == alone.token_ids
    assert alone.rounds == alone.tokens - 1
    assert 0 < ours.rounds < alone.rounds
    for answer in (alone, ours):
        assert 0 < answer.prefill_seconds <= answer.seconds


def check_stop(opener: Callable[[Setup], Engine], model: Path, answer: Answer) -> None:
    """Take a token of the answer for a stop token: there, the answer ends."""
    stop = answer.token_ids[3]
    stopped = opener(Setup(model, (stop,), 64, 1))(PROMPT, TOKENS)
    assert stopped.token_ids == answer.token_ids[: answer.token_ids.index(stop) + 1]


def test_transformers(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = Peers(open_target(str(tiny_folder("llama"))), tmp_path).hugging_face()
    setup = Setup(model, (), 64, 1)
    check(transformers(setup), transformers(setup, lookup=True))
    check_stop(partial(transformers, lookup=True), model, transformers(setup)(PROMPT, TOKENS))


@needs("dejavuu")
def test_dejavuu(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = Peers(open_target(str(tiny_folder("llama"))), tmp_path).dejavuu()
    setup, plain = Setup(model, (), 64, 1), partial(dejavuu, variant="fp32")
    check(plain(setup), plain(setup, lookup=True))
    check_stop(partial(plain, lookup=True), model, plain(setup)(PROMPT, TOKENS))


@needs("onnxruntime_genai")
def test_onnxruntime_genai(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = Peers(open_target(str(tiny_folder("llama"))), tmp_path).genai()
    setup, drafting = Setup(model, (), 64, 1), partial(onnxruntime_genai, speculation=GENAI_NGRAMS)
    check(onnxruntime_genai(setup), drafting(setup))
    check_stop(drafting, model, onnxruntime_genai(setup)(PROMPT, TOKENS))


@needs("llama_cpp")
def test_llama_cpp(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    target = write_gguf(tmp_path / "target.gguf", tiny_folder("llama"), "llama")
    model = Peers(open_target(str(target)), tmp_path).gguf()
    setup, plain = Setup(model, (), 64, 1), partial(llama_cpp, float32_cache=True)
    check(plain(setup), plain(setup, lookup=True))
    check_stop(partial(plain, lookup=True), model, plain(setup)(PROMPT, TOKENS))


@needs("openvino_genai")
@pytest.mark.slow
@pytest.mark.skipif(not CONVERTER.exists(), reason=f"needs {CONVERTER}: benchmarks/README.md")
def test_openvino(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "converter").symlink_to(CONVERTER.absolute())
    model = Peers(open_target(str(tiny_folder("llama"))), tmp_path).openvino()
    setup, plain = Setup(model, (), 64, 1), partial(openvino_genai, float32=True)
    check(plain(setup), plain(setup, lookup=True))
    check_stop(partial(plain, lookup=True), model, plain(setup)(PROMPT, TOKENS))

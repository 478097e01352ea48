"""The engines that are compared, each as a function from a prompt's ids to a timed greedy answer.

Those of `ENGINES` compute in float32 with the same weights. All decode one sequence, and stop at the
same tokens. Prompts come as ids; ours decodes its answer to text as it goes, the others do not.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Peers
from benchmarks.workers import Setup


@dataclass(frozen=True)
class Answer:
    """A greedy answer; a stop token, where there was one, is its last token."""

    token_ids: list[int]
    prefill_seconds: float  # until the first token
    seconds: float  # until the last token, prefill included
    rounds: int  # calls of the target after prefill
    target_seconds: float = 0.0  # of the rounds; peers do not tell
    draft_seconds: float = 0.0
    chains: bool = True  # every tree that was verified was a chain

    @property
    def tokens(self) -> int:
        """Tokens emitted."""
        return len(self.token_ids)


Engine = Callable[[list[int], int], Answer]  # ids and the most new tokens to an answer


class _Clock:
    """Notes the time of every token; its methods are what transformers wants of a streamer."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, _token: Any) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass

    def answer(self, tokens: list[int]) -> Answer:
        """Return the answer of an engine whose every round is one token."""
        times = self.times[-len(tokens) :]
        return Answer(tokens, times[0], times[-1], len(tokens) - 1)


def target_only(setup: Setup) -> Engine:
    """Our bundle, decoding with its target alone."""
    return _ours(setup, target_only=True)


def speculative(setup: Setup) -> Engine:
    """Our bundle, through draft and verify."""
    return _ours(setup, target_only=False)


def _ours(setup: Setup, target_only: bool) -> Engine:
    from poss_export.evaluation.answers import answer
    from poss_export.runtime.bundle import open_bundle

    bundle = open_bundle(setup.model, threads=setup.threads).__enter__()  # until the process ends

    def ours(ids: list[int], max_new_tokens: int) -> Answer:
        made = answer(bundle, ids, max_new_tokens, target_only=target_only)
        times = made.prefill_seconds, made.seconds
        return Answer(
            list(made.token_ids), *times, made.rounds, made.target_seconds, made.draft_seconds, made.chains
        )

    return ours


def transformers(setup: Setup) -> Engine:
    """Hugging Face transformers: `generate` with its defaults."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(setup.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        clock = _Clock()
        prompt = torch.tensor([ids])
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(setup.stop_ids),
            pad_token_id=setup.stop_ids[0],
            streamer=clock,
        )
        return clock.answer(output[0, len(ids) :].tolist())

    return answer


def open_genai(setup: Setup) -> Any:
    """Return the model of onnxruntime-genai, CPU."""
    import onnxruntime_genai as og

    config = og.Config(str(setup.model))
    session = {"intra_op_num_threads": setup.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return og.Model(config)


def onnxruntime_genai(setup: Setup) -> Engine:
    """onnxruntime-genai on the folder that its model builder makes, CPU."""
    import onnxruntime_genai as og

    model = open_genai(setup)

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        clock = _Clock()
        parameters = og.GeneratorParams(model)
        length = min(len(ids) + max_new_tokens, setup.capacity)
        parameters.set_search_options(max_length=length, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        tokens: list[int] = []
        while not generator.is_done() and len(tokens) < max_new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            clock.put(tokens[-1])
            if tokens[-1] in setup.stop_ids:
                break
        return clock.answer(tokens)

    return answer


def open_llama(setup: Setup, **options: Any) -> Any:
    """Return llama.cpp's model by llama-cpp-python."""
    import llama_cpp as cpp

    return cpp.Llama(
        str(setup.model),
        n_ctx=setup.capacity,
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        verbose=False,
        **options,
    )


def llama_cpp(setup: Setup) -> Engine:
    """llama.cpp by llama-cpp-python: float32 weights and cache."""
    import llama_cpp as cpp

    return _llama(open_llama(setup, type_k=cpp.GGML_TYPE_F32, type_v=cpp.GGML_TYPE_F32), setup)


def llama_cpp_by_default(setup: Setup) -> Engine:
    """llama.cpp by llama-cpp-python with its own choice of a cache, which is float16."""
    return _llama(open_llama(setup), setup)


def _llama(model: Any, setup: Setup) -> Engine:
    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        model.reset()  # or it would reuse the cache of the previous, equal prompt
        clock = _Clock()
        tokens: list[int] = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            clock.put(token)
            if token in setup.stop_ids or len(tokens) == max_new_tokens:
                break
        return clock.answer(tokens)

    return answer


@dataclass(frozen=True)
class Kind:
    """An engine to compare: the module it needs, how it opens, which files it reads (None: the bundle)."""

    module: str
    open: Callable[[Setup], Engine]
    files: Callable[[Peers], Path] | None = None


ENGINES = {
    "target-only": Kind("onnxruntime", target_only),
    "speculative": Kind("onnxruntime", speculative),
    "transformers": Kind("transformers", transformers, Peers.hugging_face),
    "onnxruntime-genai": Kind("onnxruntime_genai", onnxruntime_genai, Peers.genai),
    "llama.cpp": Kind("llama_cpp", llama_cpp, Peers.gguf),
}
BASELINE = "target-only"  # ratios and equality are against it

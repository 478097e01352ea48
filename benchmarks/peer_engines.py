"""The peers, each as a function from a prompt's ids to a timed greedy answer.

Where a peer speculates by itself, from what stands in prompt and answer, it does so with the settings that
its own documentation starts from.
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.answers import Answer, Clock, Engine
from benchmarks.workers import Setup

# From the documentation of speculative decoding in onnxruntime-genai, version 0.18.
GENAI_NGRAMS = {"ngram_size": 4, "max_draft_tokens": 8, "ngram_chained_lookup": True, "min_adaptive_k": 2}


PROMPT_LOOKUP_TOKENS = 10  # a round, as prompt lookup's authors do; n-grams as long as transformers' default


class _Streamer(Clock):
    """What transformers streams to: the prompt, then the tokens of every call of the model."""

    calls = -1

    def put(self, tokens: Any) -> None:
        """Note the tokens of a call."""
        self.calls += 1
        for token in tokens.flatten() if self.calls else ():
            super().put(token)

    def end(self) -> None:
        """Nothing to do."""


def transformers(setup: Setup, lookup: bool = False) -> Engine:
    """Hugging Face transformers: `generate` with its defaults; with `lookup` it drafts by prompt lookup."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(setup.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32)

    drafting = {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS} if lookup else {}

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        clock = _Streamer()
        prompt = torch.tensor([ids])
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(setup.stop_ids) or None,
            pad_token_id=setup.stop_ids[0] if setup.stop_ids else 0,
            streamer=clock,
            **drafting,
        )
        return clock.answer(output[0, len(ids) :].tolist(), clock.calls - 1)

    return answer


def open_genai(setup: Setup) -> Any:
    """Return the model of onnxruntime-genai, CPU."""
    import onnxruntime_genai as og

    config = og.Config(str(setup.model))
    session = {"intra_op_num_threads": setup.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return og.Model(config)


def onnxruntime_genai(setup: Setup, speculation: Mapping[str, Any] | None = None) -> Engine:
    """onnxruntime-genai on the folder that its model builder makes, CPU.

    With `speculation`, such as `GENAI_NGRAMS`, as its own documentation of speculative decoding says.
    """
    import onnxruntime_genai as og

    model = open_genai(setup)

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        clock = Clock()
        parameters = og.GeneratorParams(model)
        length = min(len(ids) + max_new_tokens, setup.capacity)
        parameters.set_search_options(max_length=length, do_sample=False)
        parameters.set_speculative_options(**speculation or {})
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        tokens: list[int] = []
        while not generator.is_done() and len(tokens) < max_new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            clock.put(tokens[-1])
            if tokens[-1] in setup.stop_ids:
                break
        return clock.answer(tokens, _genai_rounds(generator) if speculation else None)

    return answer


def _genai_rounds(generator: Any) -> int:
    """Return the calls of the target after that which gave the first token."""
    stats = generator.get_speculative_stats()
    return int(stats["rounds"] + stats["standard_fallback_steps"]) - 1


def open_llama(setup: Setup, *, float32_cache: bool = False, **options: Any) -> Any:
    """Return llama.cpp's model by llama-cpp-python; its own choice of a cache is float16."""
    import llama_cpp as cpp

    if float32_cache:
        options |= {"type_k": cpp.GGML_TYPE_F32, "type_v": cpp.GGML_TYPE_F32}
    return cpp.Llama(
        str(setup.model),
        n_ctx=setup.capacity,
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        verbose=False,
        **options,
    )


def llama_cpp(setup: Setup, *, float32_cache: bool = False, lookup: bool = False) -> Engine:
    """llama.cpp by llama-cpp-python.

    With `lookup` it drafts by prompt lookup, two tokens a round, as it advises for a CPU. It then computes
    the logits of all tokens of a prompt, which makes prefill slower.
    """
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    drafts = _Counted(LlamaPromptLookupDecoding(num_pred_tokens=2)) if lookup else None
    model = open_llama(setup, float32_cache=float32_cache, draft_model=drafts)

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        model.reset()  # or it would reuse the cache of the previous, equal prompt
        before = drafts.calls if drafts else 0
        clock = Clock()
        tokens: list[int] = []
        for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            clock.put(token)
            if token in setup.stop_ids or len(tokens) == max_new_tokens:
                break
        return clock.answer(tokens, drafts.calls - before if drafts else None)

    return answer


class _Counted:
    """Counts calls of a draft model of llama-cpp-python: one before each call of the target after prefill."""

    def __init__(self, draft: Any) -> None:
        self.draft = draft
        self.calls = 0

    def __call__(self, ids: Any, **options: Any) -> Any:
        self.calls += 1
        return self.draft(ids, **options)


def openvino_properties(setup: Setup, float32: bool) -> dict[str, Any]:
    """Return what OpenVINO is told of the CPU; it computes in bfloat16 where that does, unless `float32`."""
    precision = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"} if float32 else {}
    return {"INFERENCE_NUM_THREADS": setup.threads, **precision}


def _open_openvino(setup: Setup, lookup: bool, float32: bool) -> Any:
    import openvino_genai as ov

    properties = openvino_properties(setup, float32)
    if lookup:
        properties |= {"prompt_lookup": True}
    scheduler = ov.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # or a repeat would find its prompt read
    scheduler.max_num_batched_tokens = setup.capacity
    return ov.LLMPipeline(str(setup.model), "CPU", scheduler_config=scheduler, **properties)


def openvino_genai(setup: Setup, *, lookup: bool = False, float32: bool = False) -> Engine:
    """OpenVINO GenAI, CPU.

    With `lookup` it drafts by prompt lookup, with the settings of its own sample.
    """
    import numpy as np
    import openvino_genai as ov
    from openvino import Tensor

    pipeline = _open_openvino(setup, lookup, float32)
    config = ov.GenerationConfig()
    config.stop_token_ids = set(setup.stop_ids)
    if lookup:
        config.num_assistant_tokens, config.max_ngram_size = 5, 3

    class Streamer(ov.StreamerBase):  # type: ignore[misc]
        """Notes the time of every token, and how many writes there were: one a call of the target."""

        def __init__(self) -> None:
            super().__init__()
            self.clock, self.writes = Clock(), 0

        def write(self, token: int | list[int]) -> Any:
            self.writes += 1
            for one in [token] if isinstance(token, int) else token:
                self.clock.put(one)
            return ov.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        config.max_new_tokens = max_new_tokens
        prompt = Tensor(np.array([ids], dtype=np.int64))
        inputs = ov.TokenizedInputs(prompt, Tensor(np.ones((1, len(ids)), dtype=np.int64)))
        streamer = Streamer()
        found = pipeline.generate(inputs, config, streamer)
        return streamer.clock.answer(list(found.tokens[0]), streamer.writes - 1)

    return answer


def dejavuu(setup: Setup, *, variant: str, lookup: bool = False) -> Engine:
    """The dejavuu library on ONNX Runtime, CPU; `variant` is a graph that its own builder made.

    With `lookup` it drafts by prompt lookup, its method "pld", with its defaults. It reads the last token of
    a prompt in its first round, which may give several tokens; that round is not counted, as everywhere.
    """
    from dejavuu.core.engine import generate
    from dejavuu.decoders.text import Model
    from dejavuu.drafters import make_drafter

    model = Model(setup.model, variant, threads=setup.threads)
    stop = setup.stop_ids[0] if setup.stop_ids else None  # it knows one; at the others answers are cut

    def answer(ids: list[int], max_new_tokens: int) -> Answer:
        clock = Clock()
        drafter = make_drafter("pld") if lookup else None
        found = generate(
            model, ids, max_new_tokens, drafter, eos=stop, on_emit=lambda token, _: clock.put(token)
        )
        ends = (place for place, token in enumerate(found.tokens, start=1) if token in setup.stop_ids)
        tokens = found.tokens[: next(ends, None)]
        del clock.times[len(tokens) :]
        return clock.answer(tokens, found.steps - 1)

    return answer

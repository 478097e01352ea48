"""A bundle in use: its graphs loaded, its text tools at hand.

with open_bundle("smollm2") as bundle:
    print(bundle.generate("Why is the sky blue?", max_new_tokens=64).text)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, Unpack, overload

import numpy as np

from poss_export.contract import GraphContract, draft_contract, target_contract
from poss_export.engine_spec import Backend, EngineEntry, GraphName
from poss_export.errors import BackendError, BundleError, PromptError
from poss_export.manifest import DRAFT_GRAPH, DRAFT_IDS, TOKENIZER, Manifest, read_manifest
from poss_export.prompts import Prompt
from poss_export.runtime.generation import Generation, Stream
from poss_export.runtime.manifest_fit import check_manifest
from poss_export.runtime.planning.planner import ADAPTIVE, Planning, WholeTrees
from poss_export.runtime.planning.planners import Planners, read_corpus
from poss_export.runtime.prompt_ids import prompt_ids
from poss_export.runtime.request import Request, is_several, words_of
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sessions.base import DraftSession, TargetSession
from poss_export.runtime.sessions.cuda import device_capability
from poss_export.runtime.sessions.facts import engine_facts
from poss_export.runtime.sessions.fit import choose_engines
from poss_export.runtime.sessions.onnx_target import onnx_target
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, Provider
from poss_export.runtime.sessions.tensorrt import TensorrtDraftSession, TensorrtTargetSession
from poss_export.text import Message, Text, user_says


class Bundle:
    """Enter it to load the engines; then `generate` and `stream` answer prompts, one at a time.

    Threads may share it: an answer waits for another thread's.
    """

    target: TargetSession
    drafter: DraftSession | None

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        options: OrtOptions,
        engines: Mapping[GraphName, Sequence[EngineEntry]] | None = None,
    ) -> None:
        """Prepare the sessions of a bundle whose manifest was read; nothing is loaded yet.

        With `engines`, checked ones for this device, TensorRT runs it; else ONNX Runtime with `options`.
        """
        backend: Backend = "onnxruntime" if engines is None else engines["target"][0].spec.flavour
        self.folder, self.manifest = folder, manifest
        self.text = Text((folder / TOKENIZER).read_text(encoding="utf-8"), manifest.text)
        contracts, capacity = contracts_of(manifest), manifest.capacity
        if engines is None:
            self.target = onnx_target(folder, manifest, contracts["target"], options)
        else:
            self.target = TensorrtTargetSession(folder, engines["target"], contracts["target"], options.slots)
        self.drafter = None
        if manifest.drafter is not None:
            tables = manifest.target.embedding.open(folder), np.load(folder / DRAFT_IDS)
            if engines is None:
                self.drafter = OrtDraftSession(
                    folder / DRAFT_GRAPH, contracts["draft"], capacity, options, *tables
                )
            else:
                self.drafter = TensorrtDraftSession(
                    folder, engines["draft"], contracts["draft"], *tables, options.slots
                )
        engine = partial(engine_facts, backend, options.provider, options.threads)
        self.planners = Planners(folder, manifest, self.target, self.drafter, engine)

    def __enter__(self) -> Self:
        """Load the graphs and check that everything fits.

        Raises:
            BackendError: ONNX Runtime or its provider is missing, or refuses a graph.
            BundleError: a graph or the tokenizer is not what the manifest describes.
        """
        with ExitStack() as stack:
            self._check_tokenizer()
            stack.enter_context(self.target)
            if self.drafter is not None:
                stack.enter_context(self.drafter)
            self._sessions = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Free the engines."""
        self._sessions.close()

    @property
    def chats(self) -> bool:
        """Whether the target has a chat template; prompts of one that has none are continued as they are."""
        return self.manifest.text.chat_template is not None

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        target_only: bool = False,
        planning: Planning | None = ADAPTIVE,
        raw: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
        control_tokens: bool = False,
    ) -> Stream:
        """Return the answer as a stream of text; its `result` is there after the last piece.

        Args:
            prompt: what the user says, or the messages so far, the user's last; with `raw`, text to continue
                without the chat template.
            max_new_tokens: answer at most this many tokens.
            sampling: greedy unless told otherwise.
            stop: strings that end the answer, and are not part of it; control tokens by their names, too.
            target_only: decode one token a round, the baseline.
            planning: how rounds are chosen; None verifies the drafter's whole tree every round.
            raw: leave out the chat template.
            variables: what the chat template reads beside messages, such as `enable_thinking` or `tools`.
            control_tokens: let names of control tokens in messages and variables be those tokens, not text.

        Raises:
            PromptError: the prompt cannot be answered.
            InputError: another value cannot be used.
        """
        ids = self.encode(prompt, raw=raw, variables=variables, control_tokens=control_tokens)
        return Stream(
            self.target,
            None if target_only else self.drafter,
            self.text,
            words_of(prompt),
            ids,
            planner=WholeTrees if target_only else partial(self.planners.planner, planning),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
        )

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        variables: Mapping[str, Any] = MappingProxyType({}),
        control_tokens: bool = False,
    ) -> list[int]:
        """Return the ids of what the user says, or of messages; arguments and errors as in `stream`."""
        return prompt_ids(
            self.text,
            self.manifest.target.config.vocab_size,
            prompt,
            raw=raw,
            variables=variables,
            control_tokens=control_tokens,
        )

    @overload
    def generate(self, prompt: str | Sequence[Message], **request: Unpack[Request]) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str] | list[list[Message]], **request: Unpack[Request]
    ) -> list[Generation]: ...

    def generate(self, prompt: Any, **request: Unpack[Request]) -> Generation | list[Generation]:
        """Return the answer, or the answers to a list of prompts; arguments and errors as in `stream`."""
        if is_several(prompt):
            from poss_export.runtime.answers import answer_all  # which needs bundles

            return answer_all(self, prompt, **request)
        return self.stream(prompt, **request).run()

    def conversation(self, prompt: Prompt, **request: Unpack[Request]) -> Iterator[Stream]:
        """Yield the answer to each turn of a prompt; the next turn is asked behind the whole answer.

        Arguments and errors as in `stream`, those of the prompt with its source; with `raw` a prompt has one
        turn.
        """
        try:
            yield from self._turns(prompt, **request)
        except PromptError as error:
            where = "" if prompt.source is None else f"{prompt.source}: "
            raise PromptError(f"{where}{error}", options=error.options) from error

    def _turns(self, prompt: Prompt, **request: Unpack[Request]) -> Iterator[Stream]:
        if request.get("raw", False):
            if len(prompt.turns) != 1 or prompt.before:
                said = "messages before its turn" if prompt.before else f"{len(prompt.turns)} turns"
                raise PromptError(
                    f"prompt {prompt.id!r} has {said}, which take a chat template; "
                    "give plain text as one turn"
                )
            yield self.stream(prompt.turns[0], **request)
            return
        messages = [*prompt.before]
        for turn in prompt.turns:
            messages.append(user_says(turn))
            stream = self.stream(messages, **request)
            yield stream
            messages.append({"role": "assistant", "content": stream.run().text})

    def converse(self, prompt: Prompt, **request: Unpack[Request]) -> list[Generation]:
        """Return the answer to each turn of a prompt; arguments and errors as in `conversation`."""
        return [stream.run() for stream in self.conversation(prompt, **request)]

    def _check_tokenizer(self) -> None:
        try:
            tokens = self.text.tokenizer.get_vocab_size(with_added_tokens=False)
        except Exception as error:  # tokenizers raises nothing narrower
            raise BundleError(f"{TOKENIZER} cannot be read ({error}); rebuild the bundle") from error
        highest = max([tokens - 1, *self.manifest.text.stop_ids])
        if highest >= (vocab_size := self.manifest.target.config.vocab_size):
            raise BundleError(
                f"{TOKENIZER} and the stop ids reach token {highest}, the target has {vocab_size} tokens; "
                "rebuild the bundle"
            )


def contracts_of(manifest: Manifest) -> dict[GraphName, GraphContract]:
    """Return the contract of every graph in a bundle."""
    taps = () if (drafter := manifest.drafter) is None else drafter.config.taps
    contracts: dict[GraphName, GraphContract] = {
        "target": target_contract(manifest.target.config, manifest.precision, taps)
    }
    if drafter is not None:
        contracts["draft"] = draft_contract(drafter.config, drafter.tree, manifest.precision)
    return contracts


def open_bundle(
    path: Path | str,
    *,
    threads: int | None = None,
    provider: Provider = "cpu",
    backend: Backend = "onnxruntime",
    lookup: Path | None = None,
    slots: int = 1,
) -> Bundle:
    """Read the bundle in the folder `path`; enter the result to load its engines.

    Args:
        path: a folder that `poss-export build` wrote.
        threads: of each engine; None leaves the number to ONNX Runtime.
        provider: of ONNX Runtime: "cpu", or "cuda" for a bundle with static caches.
        backend: "onnxruntime" runs the graphs; "tensorrt-rtx" and "tensorrt" run engines built from them.
        lookup: a file of plain text whose continuations are proposed too.
        slots: answers that can be in the making at once. They share calls but for engines that were not built
            for it, which serve them one after the other in each round.

    Raises:
        InputError: there is no such folder, `threads` or `slots` is below 1, or `lookup` cannot be used.
        BundleError: it is no bundle, or it is damaged or contradicts itself.
        BackendError: the backend does not run this bundle, or not on this machine.
    """
    folder, options = Path(path), OrtOptions(provider, threads, slots=slots)
    manifest = read_manifest(folder)
    if provider == "cuda" and manifest.cache_form != "static":
        raise BackendError(
            f"{str(folder)!r} has {manifest.cache_form} caches, which only the CPU provider runs; "
            "build it again with static caches for CUDA",
            options=("cache_form",),
        )
    if backend == "onnxruntime" and manifest.precision == "bf16":
        raise BackendError(
            f"{str(folder)!r} is in bf16, which ONNX Runtime does not run here: run its TensorRT engines "
            "on a machine with a GPU, or build in fp32 or fp16; samples in fp32 serve every precision"
        )
    check_manifest(manifest)
    engines = None
    if backend != "onnxruntime":
        engines = choose_engines(folder, manifest, contracts_of(manifest), backend, device_capability)
    bundle = Bundle(folder, manifest, options, engines)
    if lookup is not None:
        bundle.planners.corpus = read_corpus(lookup, bundle.text)
    return bundle

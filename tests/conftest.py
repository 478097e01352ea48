"""Tiny targets, and graphs made of them once per run. Heavy libraries are imported where they are used."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from poss_export.config import CacheForm, Precision, TargetConfig, TreeShape
from poss_export.drafter_config import DrafterConfig

# PyTorch reads it when it is first imported: tiny models are fastest on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, whatever the machine's speed.
settings.register_profile("repeatable", deadline=None, database=None, derandomize=True, max_examples=60)
settings.register_profile("thorough", deadline=None, database=None, max_examples=2000)
settings.load_profile("repeatable")

pytest_plugins = [
    "tests.fixtures.acceptance",
    "tests.fixtures.bundles",
    "tests.fixtures.fakes",
    "tests.fixtures.once",
    "tests.fixtures.ort_sessions",
]

CAPACITY = 48
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
}
_CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}
_LAYERS = ["sliding_attention", "full_attention"]
_MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
# name: (transformers' model type, what is special about it)
_TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": _YARN_ROPE}),
    "mistral": ("mistral", {"sliding_window": 64, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32, "num_key_value_heads": 4}),
    # Windows that a few tokens are longer than, rotary embeddings by layer, caps that bite.
    "windows": ("mistral", {"sliding_window": 6}),
    "granite": ("granite", _MULTIPLIERS),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 48}),
    "phi4": ("phi3", {"pad_token_id": 0, "head_dim": 16, "partial_rotary_factor": 0.5}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 100, **_CAPS}),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 6, "layer_types": _LAYERS}),
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is measured out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the Hugging Face folder of a tiny random target, by a name of `_TINY`."""

    @cache
    def write(name: str) -> Path:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

        model_type, special = _TINY[name]
        auto: Any = AutoModelForCausalLM  # its methods are half annotated
        model = auto.from_config(AutoConfig.for_model(model_type, **{**_SIZES, **special}))
        torch.manual_seed(0)
        gain = float(not model_type.startswith("gemma"))  # whose norms add 1
        for weight in model.parameters():  # large enough that every part of the decoder shows
            torch.nn.init.normal_(weight, mean=gain if weight.dim() == 1 else 0, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        words = {f"<{i}>": i for i in range(_SIZES["vocab_size"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if model_type in ("qwen2", "qwen3"):  # transformers makes byte-level BPE of whatever is there
            tokenizer = Qwen2Tokenizer(words).backend_tokenizer
        tokenizer.save(str(folder / "tokenizer.json"))
        if model_type.startswith(("gemma", "qwen3_moe")):  # whose own classes know no plain words
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        return folder

    return write


@pytest.fixture(scope="session")
def target_graph(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return target_graph(name, cache_form, precision="fp32", taps=()): an exported tiny target.

    Its capacity is 48.
    """

    @cache
    def export(
        name: str, cache_form: CacheForm, precision: Precision = "fp32", taps: tuple[int, ...] = ()
    ) -> Path:
        from poss_export.exporters.target import export_target
        from poss_export.targets.checkpoint import open_target

        path = tmp_path_factory.mktemp(f"{name}-{cache_form}-{precision}") / "target.onnx"
        decoder = open_target(str(tiny_folder(name))).load_decoder()
        shape: Any = {"cache_form": cache_form, "precision": precision, "capacity": CAPACITY}
        export_target(decoder, path, taps=taps, **shape)
        return path

    return export


@pytest.fixture(scope="session")
def random_drafter() -> Callable[..., Any]:
    """Return random_drafter(target_config, specialists, **choices): PosS-2, or EAGLE with one specialist."""

    def make(target: TargetConfig, specialists: int, **choices: Any) -> Any:
        import torch

        from poss_export.drafters.model import Drafter

        config = DrafterConfig(
            hidden_size=target.hidden_size,
            intermediate_size=80,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            rms_norm_eps=1e-5,
            vocab_size=target.vocab_size,
            draft_vocab_size=60,
            num_specialists=specialists,
            positions_per_specialist=None if specialists == 1 else 2,
            **choices,
        )
        generator = torch.Generator().manual_seed(1)
        drafter = Drafter(config).eval().requires_grad_(False)
        for weight in drafter.parameters():
            weight.normal_(float(weight.dim() == 1), 0.3, generator=generator)
        ids = torch.randperm(target.vocab_size, generator=generator)[:60]
        drafter.draft_ids.copy_(ids.sort().values)
        return drafter

    return make


@pytest.fixture(scope="session")
def tiny_bundle(bundle_of_form: Callable[[CacheForm], Path]) -> Path:
    """Return a bundle of a tiny target and a random drafter; to change it, copy it."""
    return bundle_of_form("shared")


@pytest.fixture(scope="session")
def bundle_of_form(
    tiny_folder: Callable[[str], Path],
    random_drafter: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[CacheForm], Path]:
    """Return bundle_of_form(form): the tiny bundle with caches of that form; to change it, copy it."""
    from poss_export.bundling.build import build_bundle
    from poss_export.bundling.plan import plan_build
    from poss_export.drafters.checkpoint import DrafterCheckpoint
    from poss_export.targets.checkpoint import open_target
    from tests.fixtures.once import once, shared_folder

    @cache
    def build(form: CacheForm) -> Path:
        target = open_target(str(tiny_folder("llama")))
        drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
        shape: dict[str, Any] = {"capacity": CAPACITY, "precision": "fp32", "cache_form": form}
        plan = plan_build(target, drafter, tree=TreeShape(depth=4, top_k=3, nodes=8), **shape)
        made = once(
            shared_folder(tmp_path_factory) / f"tiny-bundle-{form}",
            lambda folder: build_bundle(plan, folder / "tiny", argv=["test"]),
        )
        return made / "tiny"

    return build


@pytest.fixture(scope="session")
def engine_bundle(
    tiny_folder: Callable[[str], Path],
    random_drafter: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Return engine_bundle(precision, *capacities): with TensorRT-RTX engines; to change it, copy it."""
    from tests.fixtures.once import once, shared_folder

    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")

    @cache
    def build(precision: Any, *capacities: int) -> Path:
        from poss_export.bundling.build import build_bundle
        from poss_export.bundling.engine_request import request_engines
        from poss_export.bundling.plan import plan_build
        from poss_export.drafters.checkpoint import DrafterCheckpoint
        from poss_export.engine_spec import EngineOptions
        from poss_export.targets.checkpoint import open_target

        target = open_target(str(tiny_folder("llama")))
        drafter = DrafterCheckpoint("random", "0" * 64, random_drafter(target.config, 3), None)
        options = EngineOptions(compute_capabilities=("8.9", "12.0"))
        plan = plan_build(
            target,
            drafter,
            tree=TreeShape(depth=4, top_k=3, nodes=8),
            capacity=CAPACITY,
            precision=precision,
            cache_form="static",
            engines=request_engines("tensorrt-rtx", options, capacities),
        )
        name = "-".join(["engines", precision, *map(str, capacities)])

        def make(folder: Path) -> None:
            if capacities:  # what has engines of one gets those of the others
                shutil.copytree(build(precision), folder / "engines")
            build_bundle(plan, folder / "engines", argv=["test"])

        return once(shared_folder(tmp_path_factory) / name, make) / "engines"

    return build


class CachedTarget:
    """A target graph in ONNX Runtime with caches of its own; plain on purpose."""

    def __init__(self, path: Path, batch: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        past = [spec for spec in self.session.get_inputs() if spec.name.startswith("past_key_values")]
        dtype = np.float16 if "float16" in past[0].type else np.float32
        self.batch, self.length = batch, 0
        self.caches = {s.name: np.zeros((batch, s.shape[1], CAPACITY, s.shape[3]), dtype) for s in past}

    def __call__(
        self,
        ids: list[int],
        depths: list[int] | None = None,
        mask: np.ndarray | None = None,
        rows: list[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run `ids` behind what is cached and keep their rows; by default a prompt chunk, all rows wanted."""
        count = len(ids)
        depths = list(range(count)) if depths is None else depths
        mask = np.tril(np.ones((count, count), bool)) if mask is None else mask
        rows = list(range(count)) if rows is None else rows
        feed = {
            "input_ids": np.array([ids] * self.batch),
            "position_ids": self.length + np.array([depths] * self.batch),
            "tree_mask": np.array([mask] * self.batch),
            "past_length": np.array([self.length] * self.batch),
            "logits_rows": np.array([rows] * self.batch, np.int64),
        }
        names = [spec.name for spec in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, {**feed, **self.caches}), strict=True))
        self.caches = {name: outputs[name.replace("past_key_values", "present")] for name in self.caches}
        self.length += count
        return outputs


@pytest.fixture(scope="session")
def cached_target() -> type[CachedTarget]:
    """Return the class that runs a target graph with caches of its own."""
    return CachedTarget

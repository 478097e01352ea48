"""Which architectures there are: those that the decoder computes, and why it does not compute others."""

from typing import Any

from poss_export.errors import CheckpointError

_EXPERTS = "it sends each token through some of many experts"
_IMAGES = "it reads images, too"
_FOLDER_ONLY = "its GGUF files are not read; use its Hugging Face folder"
_COHERE = "attention and MLP stand side by side in a block, behind a LayerNorm"
_OLMO = "its norms stand behind attention and MLP"
# By the names of transformers and of llama.cpp: what our decoder does not compute.
_REASONS = {
    **dict.fromkeys(("qwen2_moe", "qwen2moe", "qwen3moe", "olmoe"), _EXPERTS),
    **dict.fromkeys(("granitemoe", "deepseek_v2", "deepseek_v3", "deepseek2"), _EXPERTS),
    **dict.fromkeys(("gpt_oss", "gpt-oss"), f"{_EXPERTS}, and its attention has sinks"),
    **dict.fromkeys(("llama4", "llama4_text"), f"{_EXPERTS}, and some layers have attention in chunks"),
    **dict.fromkeys(("mllama", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava"), _IMAGES),
    "gemma3": f"{_IMAGES}; gemma3_text does not, and its folder is read",
    **dict.fromkeys(("gemma", "gemma2", "granite", "phi3"), _FOLDER_ONLY),
    **dict.fromkeys(("cohere", "cohere2", "command-r"), _COHERE),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO),
    "smollm3": "some of its layers rotate nothing",
}


def check_architecture(name: Any, known: tuple[str, ...]) -> None:
    """Raise CheckpointError with the reason where a checkpoint's architecture is none of those `known`."""
    if name not in known:
        reason = _REASONS.get(name) if isinstance(name, str) else None
        why = "" if reason is None else f": {reason}"
        raise CheckpointError(
            f"architecture {name!r} is not supported{why}; this version knows {', '.join(known)}"
        )

"""The target in the formats of other engines, made from exactly the weights that our float32 computes with.

A peer's files are written once below a folder named by the hash of the weights, each in a folder of
its own that appears under its final name only when it is complete.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from poss_export.config import TargetConfig
from poss_export.errors import InputError
from poss_export.targets.checkpoint import Target

if TYPE_CHECKING:
    from torch import Tensor

    from poss_export.targets.decoder import Decoder


class Peers:
    """Makes the peers' folders of `target` below `cache`, each on first use."""

    def __init__(self, target: Target, cache: Path) -> None:
        """Name the folder; nothing is written yet."""
        self.target = target
        self.folder = cache / target.sha256[:16]

    def hugging_face(self) -> Path:
        """Return a float32 Hugging Face folder: config.json, model.safetensors, tokenizer.json."""
        return self._once("hugging-face", self._write_hugging_face)

    def genai(self, precision: str = "fp32") -> Path:
        """Return a CPU folder of onnxruntime-genai, made by its own model builder."""
        name = "genai" if precision == "fp32" else f"genai-{precision}"
        return self._once(name, partial(self._write_genai, precision))

    def openvino(self, weights: str = "fp32") -> Path:
        """Return a folder of OpenVINO's with weights in "fp32" or "int8", made by optimum-intel.

        Raises:
            InputError: optimum-intel is not in its environment, or fails.
        """
        return self._once(f"openvino-{weights}", partial(self._write_openvino, weights))

    def dejavuu(self) -> Path:
        """Return a folder of dejavuu's with its graphs fp32, int8 and q4, made by its own builder."""
        return self._once("dejavuu", self._write_dejavuu)

    def gguf(self) -> Path:
        """Return a float32 GGUF file of a target that is itself a GGUF file."""
        return self._once("gguf", self._write_gguf) / "model.gguf"

    def quantised_gguf(self, kind: str) -> Path:
        """Return a GGUF file of a kind such as "Q8_0", quantised by llama.cpp.

        The target's own file where that is of the kind: to quantise its values again may round them.
        """
        if self._gguf_kind() == f"MOSTLY_{kind}":
            return self.target.weight_files[0]
        return self._once(f"gguf-{kind}", partial(self._quantise_gguf, kind)) / "model.gguf"

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.folder) as unfinished:
                made = Path(unfinished) / name
                made.mkdir()
                write(made)
                made.rename(path)
        return path

    def _write_hugging_face(self, folder: Path) -> None:
        from safetensors.torch import save_file

        config, text = _hugging_face_config(self.target.config), self.target.text
        save_file(
            _hugging_face_tensors(self.target.load_decoder()), folder / "model.safetensors", {"format": "pt"}
        )
        (folder / "tokenizer.json").write_text(text.tokenizer_json)
        write_json(folder / "config.json", config | {"eos_token_id": text.config.stop_ids[0]})
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", **dict(text.config.special_tokens)},
        )
        write_json(folder / "generation_config.json", {"eos_token_id": list(text.config.stop_ids)})

    def _write_genai(self, precision: str, folder: Path) -> None:
        paths = ["-i", str(self.hugging_face()), "-o", str(folder), "-c", str(folder / "cache")]
        _convert("onnxruntime-genai's model builder", [sys.executable, *genai_builder(precision), *paths])

    def _write_openvino(self, weights: str, folder: Path) -> None:
        environment = self.folder.parent / "converter"
        converter = environment / "bin/optimum-cli"
        if not converter.exists():
            raise InputError(
                f"OpenVINO's models are made by {str(converter)!r}, which does not exist: run "
                f"`python -m venv {environment}` and `{environment}/bin/pip install -r "
                "benchmarks/requirements-converter.txt`, or name other engines"
            )
        paths = ["-m", str(self.hugging_face()), str(folder)]
        _convert("optimum-intel", [str(converter), *openvino_export(weights), *paths])

    def _write_dejavuu(self, folder: Path) -> None:
        paths = ["--model", str(self.hugging_face()), "--out", str(folder)]
        _convert("dejavuu's builder", [sys.executable, *DEJAVUU_BUILDER, *paths])

    def _gguf_reader(self) -> Any:
        import gguf

        (source,) = self.target.weight_files
        if source.suffix != ".gguf":
            raise InputError("llama.cpp is compared on targets that are GGUF files; this one is not")
        return gguf.GGUFReader(source)

    def _gguf_kind(self) -> str | None:
        """Return the kind that the target's GGUF file says it is of."""
        import gguf

        field = self._gguf_reader().fields.get("general.file_type")
        return None if field is None else gguf.LlamaFileType(field.contents()).name

    def _quantise_gguf(self, kind: str, folder: Path) -> None:
        import ctypes

        import gguf
        import llama_cpp as cpp

        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it tells of every tensor
        options = cpp.llama_model_quantize_default_params()
        options.ftype = int(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        paths = (str(path).encode() for path in (self.gguf(), folder / "model.gguf"))
        if cpp.llama_model_quantize(*paths, ctypes.byref(options)):
            raise InputError(f"llama.cpp could not write a GGUF file of kind {kind}; see its messages above")

    def _write_gguf(self, folder: Path) -> None:
        import gguf
        import numpy as np

        reader = self._gguf_reader()
        architecture = reader.fields["general.architecture"].contents()
        writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
        own = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
        for name, field in reader.fields.items():
            if not name.startswith(own):
                kind = field.types[0]
                sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), kind, sub)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            writer.add_tensor(tensor.name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# The arguments of Python that run dejavuu's builder, but for paths: it wants a revision even of a folder.
# "int8" are 8-bit weights and activations, "q4" 4-bit blocks of 32 with an 8-bit head.
DEJAVUU_BUILDER = ["-m", "dejavuu.tools.build_decoder", "--revision", "main", "--quant", "both"]


def genai_builder(precision: str) -> list[str]:
    """Return the arguments of Python that run onnxruntime-genai's model builder, but for paths.

    "int8" and "int4" are weights only (MatMulNBits), in symmetric blocks of 32 with accuracy level 4, the
    builder's defaults for a CPU.
    """
    return ["-m", "onnxruntime_genai.models.builder", "-p", precision, "-e", "cpu"]


def openvino_export(weights: str) -> list[str]:
    """Return the arguments of optimum-cli, but for paths.

    "int8" is weights only, asymmetric, a scale for each output, the export's default.
    """
    return ["export", "openvino", "--task", "text-generation-with-past", "--weight-format", weights]


def _convert(maker: str, command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise InputError(f"{maker} failed: {result.stderr.strip()[-500:]}")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` readably."""
    path.write_text(json.dumps(values, indent=2) + "\n")


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def _hugging_face_config(config: TargetConfig) -> dict[str, Any]:
    written = config.architecture in (*_CLASSES, "phi3") and config.rope.scaling != "longrope"
    windows = config.windowed_layers and config.architecture != "mistral"
    if not written or windows or config.rope.rotated is not None:
        raise InputError(
            f"a target of type {config.architecture!r} cannot be written for peers; they are compared on "
            f"{', '.join(_CLASSES)} and phi3 with plain rotation, and windows of mistral"
        )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope.theta}
    if config.rope.scaling != "none":
        rope |= {"rope_type": config.rope.scaling, "factor": config.rope.factor}
    if config.rope.scaling == "llama3":
        rope |= {
            "low_freq_factor": config.rope.low_freq_factor,
            "high_freq_factor": config.rope.high_freq_factor,
            "original_max_position_embeddings": config.rope.original_max_positions,
        }
    if config.rope.scaling == "yarn":
        names = ("beta_fast", "beta_slow", "truncate", "attention_factor")
        rope |= {name: getattr(config.rope, name) for name in names}
        rope["original_max_position_embeddings"] = config.rope.original_max_positions
    # Phi-3 is a Llama with packed projections, and they are written as parts.
    model_type = "llama" if config.architecture == "phi3" else config.architecture
    return {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_positions,
        **({"sliding_window": config.window} if config.architecture == "mistral" else {}),
        "rope_parameters": rope,
        "rope_theta": config.rope.theta,  # onnxruntime-genai's builder reads this one
        "hidden_act": "silu",
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "float32",
    }


def _hugging_face_tensors(decoder: "Decoder") -> dict[str, "Tensor"]:
    """Return the decoder's weights under the names of `transformers`, projections split and `[out, in]`."""
    own = decoder.state_dict()
    tensors = {"model.embed_tokens.weight": own["embed_tokens"], "model.norm.weight": own["norm.weight"]}
    if not decoder.config.tied_embeddings:
        tensors["lm_head.weight"] = own["lm_head"]
    widths = decoder.layers[0].widths
    for index in range(decoder.config.num_layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        for kind in ("weight", "bias") if decoder.config.qkv_bias else ("weight",):
            parts = own[f"{ours}.qkv.{kind}"].split(widths, dim=-1)
            tensors |= {
                f"{theirs}.self_attn.{n}_proj.{kind}": part.t() for n, part in zip("qkv", parts, strict=True)
            }
        if decoder.config.qk_norm:
            tensors |= {f"{theirs}.self_attn.{n}_norm.weight": own[f"{ours}.{n}_norm.weight"] for n in "qk"}
        gate, up = own[f"{ours}.mlp.gate_up.weight"].chunk(2, dim=-1)
        tensors |= {
            f"{theirs}.self_attn.o_proj.weight": own[f"{ours}.output.weight"].T,
            f"{theirs}.mlp.gate_proj.weight": gate.T,
            f"{theirs}.mlp.up_proj.weight": up.T,
            f"{theirs}.mlp.down_proj.weight": own[f"{ours}.mlp.down.weight"].T,
            f"{theirs}.input_layernorm.weight": own[f"{ours}.input_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": own[f"{ours}.post_norm.weight"],
        }
        if decoder.config.output_bias:
            tensors[f"{theirs}.self_attn.o_proj.bias"] = own[f"{ours}.output.bias"]
        if decoder.config.mlp_bias:
            gate, up = own[f"{ours}.mlp.gate_up.bias"].chunk(2)
            tensors |= {f"{theirs}.mlp.gate_proj.bias": gate, f"{theirs}.mlp.up_proj.bias": up}
            tensors[f"{theirs}.mlp.down_proj.bias"] = own[f"{ours}.mlp.down.bias"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}

"""The target graph: a decoder with caches and head, as the contract states it."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from poss_export.config import CacheForm, Precision, TargetConfig
from poss_export.contract import WIDEST, target_contract
from poss_export.errors import InputError
from poss_export.exporters.attention import CACHE_FORMS
from poss_export.exporters.embedding import find_embedding
from poss_export.exporters.tracing import export_graph
from poss_export.manifest import EmbeddingTable
from poss_export.progress import Progress, silent
from poss_export.targets.decoder import Decoder
from poss_export.targets.ops import likeliest, multiply_by_table
from poss_export.targets.rope import rope_tables
from poss_export.targets.streaming import hollow
from poss_export.targets.weights import weights_of


class TargetGraph(nn.Module):
    """What the target graph computes; it runs in PyTorch as it does in the graph."""

    def __init__(
        self, decoder: Decoder, cache_form: CacheForm, capacity: int, taps: tuple[int, ...] = ()
    ) -> None:
        """Wrap `decoder` in caches; rotary tables reach as far as they do."""
        super().__init__()
        self.decoder, self.cache_form, self.taps = decoder, cache_form, taps
        # What fills up a call may stand behind the capacity: nobody reads it, but the operator counts it.
        rows = capacity + (WIDEST - 1 if cache_form == "shared" else 0)
        self.config = decoder.config.within(capacity)
        for prefix, rope in zip(("", "window_"), self.config.ropes, strict=False):
            for name, table in zip(
                ("cos", "sin"), rope_tables(rope, self.config.head_dim, rows), strict=True
            ):
                self.register_buffer(prefix + name, table.to(decoder.norm.weight.dtype))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map the contract's inputs to its outputs, each in the contract's order."""
        input_ids, position_ids, tree_mask, past_length, logits_rows, *past = inputs
        form = CACHE_FORMS[self.cache_form]
        buffers = list(self.buffers())
        tables = list(zip(buffers[::2], buffers[1::2], strict=True))
        caches = form(self.config, past, past_length, position_ids, tree_mask, tables)
        features, read = self.decoder.hidden_and_read(input_ids, caches.attend, self.taps)
        rows = logits_rows[..., None].expand(-1, -1, features.shape[-1])
        picked = features.gather(1, rows)
        if self.cache_form == "static":
            logits = self.decoder.head(picked)
            return logits, logits.argmax(-1), read, *caches.present
        logits = self.decoder.logits(multiply_by_table(picked, self.decoder.lm_head))
        return logits, likeliest(logits), read, *caches.present


def check_target(config: TargetConfig, cache_form: CacheForm, capacity: int, precision: Precision) -> None:
    """Raise InputError where a target cannot be exported like this."""
    if not 1 <= capacity <= config.max_positions:
        raise InputError(
            f"capacity is {capacity} tokens; this target was made for 1 to {config.max_positions}: "
            "choose a capacity in that range",
            options=("capacity",),
        )
    if precision == "bf16" and cache_form == "shared":
        raise InputError(
            "precision bf16 is for TensorRT: use it with backend tensorrt-rtx or tensorrt",
            options=("backend",),
        )
    if cache_form == "shared" and config.head_dim % 16:
        raise InputError(
            f"heads of size {config.head_dim} do not suit cache form 'shared', whose operator takes "
            "multiples of 16: use cache form 'static'",
            options=("cache_form",),
        )


@dataclass(frozen=True)
class ExportedTarget:
    """Where in the weights' file of a target graph the embedding table lies, and that file's hash."""

    embedding: EmbeddingTable
    sha256: str


def export_target(
    decoder: Decoder,
    path: Path,
    *,
    cache_form: CacheForm,
    precision: Precision,
    capacity: int,
    taps: tuple[int, ...] = (),
    progress: Progress = silent,
) -> ExportedTarget:
    """Write the target graph to `path` and its weights to `path` + ".data".

    Args:
        decoder: its weights are read one at a time.
        path: the .onnx file to write.
        cache_form: "shared" (ONNX Runtime CPU) or "static" (standard operators).
        precision: type of weights, caches, features and logits.
        capacity: tokens a cache can hold; static dimension of the "static" form.
        taps: layers whose incoming residual streams the graph gives in place of features.
        progress: told of the bytes that are written.

    Raises:
        InputError: as `check_target`.
        CheckpointError: a weight cannot be read.
    """
    config = decoder.config
    check_target(config, cache_form, capacity, precision)
    graph = TargetGraph(hollow(config), cache_form, capacity, taps)
    sha256 = export_graph(
        graph,
        target_contract(config, precision, taps),
        path,
        {"capacity": capacity} if cache_form == "static" else {},
        precision=precision,
        weights={**weights_of(graph), **{f"decoder.{name}": one for name, one in decoder.weights().items()}},
        progress=progress,
    )
    return ExportedTarget(find_embedding(path), sha256)

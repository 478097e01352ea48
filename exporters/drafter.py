"""The draft graph: a drafter's whole round and its caches, traced by `torch.onnx` to the contract."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from poss_export.config import CacheForm, Precision, TreeShape
from poss_export.contract import draft_contract
from poss_export.drafters.drafting import TreeDrafting
from poss_export.drafters.model import Drafter
from poss_export.exporters.ops import OPSET, TRANSLATIONS, tensor_scatter
from poss_export.targets.rope import rope_tables


class DraftGraph(nn.Module):
    """What the draft graph computes, runnable in PyTorch as well."""

    cos: Tensor
    sin: Tensor

    def __init__(self, drafting: TreeDrafting, cache_form: CacheForm, capacity: int) -> None:
        super().__init__()
        self.drafting = drafting
        self.cache_form = cache_form
        config = drafting.config
        # Tree rows stand behind a full cache, and need no room in it.
        cos, sin = rope_tables(config.rope, config.head_dim, capacity + drafting.tree.depth)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, embeddings, features, row_count, past_length, past):
        caches = RoundCaches(self, past, past_length, row_count)
        drafted = self.drafting(embeddings, features, row_count, caches)
        return *drafted, *caches.present


class RoundCaches:
    def __init__(self, graph, past, past_length, row_count):
        self.graph, self.past, self.past_length = graph, past, past_length
        self.head_dim = past[0].shape[-1]
        self.length = past_length + row_count
        self.present: list[Tensor] = []
        self.tree: dict[int, tuple[Tensor, Tensor]] = {}

    def rotate(self, x, positions):
        return torch.onnx.ops.rotary_embedding(x, self.graph.cos, self.graph.sin, positions)

    def split(self, x):
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def append(self, key_value):
        key, value = self.split(key_value).chunk(2, dim=1)
        positions = self.past_length[:, None] + torch.arange(key_value.shape[1])
        count = len(self.past) // 2
        keys, values = self.rotate(key, positions).chunk(count, dim=1), value.chunk(count, dim=1)
        for s in range(count):
            for past, new in ((self.past[2 * s], keys[s]), (self.past[2 * s + 1], values[s])):
                self.present.append(tensor_scatter(past, new, self.past_length))
        if self.graph.cache_form == "shared":
            length = self.length.item()
            torch._check(length >= 1)
            torch._check(length <= self.past[0].shape[2])
            self.prefix = [cache[:, :, :length] for cache in self.present]
            self.bias = None
        else:
            columns = torch.arange(self.past[0].shape[2])
            self.prefix = self.present
            hidden = columns >= self.length[:, None]
            self.bias = torch.zeros((), dtype=self.graph.cos.dtype).masked_fill(hidden, float("-inf"))[
                :, None, None
            ]

    def attend(self, s, query, key_value, first_level, mask):
        k, d = query.shape[1], self.head_dim
        level = 0 if mask is None else mask.shape[-1] // k
        prefix_key, prefix_value = self.prefix[2 * s : 2 * s + 2]
        groups = prefix_key.shape[1]
        q = self.rotate(self.split(query), (self.length + (level - 1))[:, None].expand(-1, k))
        q = q.unflatten(1, (groups, -1)).flatten(2, 3) * d**-0.5  # [B, G, heads per group * k, D]
        scores = q @ prefix_key.mT
        if self.bias is not None:
            scores = scores + self.bias
        if mask is None:
            mixed = scores.softmax(-1) @ prefix_value
        else:
            key, value = (self.split(x) for x in key_value)
            offsets = torch.arange(first_level - 1, level).repeat_interleave(k)
            key = self.rotate(key, self.length[:, None] + offsets)
            if first_level > 1:
                old_key, old_value = self.tree[s]
                key, value = torch.cat((old_key, key), 2), torch.cat((old_value, value), 2)
            self.tree[s] = key, value
            tree_scores = (q @ key.mT).unflatten(2, (-1, k))
            bias = torch.zeros((), dtype=q.dtype).masked_fill(~mask, float("-inf"))[:, None, None]
            tree_scores = (tree_scores + bias).flatten(2, 3)
            weights = torch.cat((scores, tree_scores), -1).softmax(-1)
            width = prefix_key.shape[2]
            mixed = weights[..., :width] @ prefix_value + weights[..., width:] @ value
        return mixed.unflatten(2, (-1, k)).permute(0, 3, 1, 2, 4).flatten(2)


def export_drafter(
    drafter: Drafter,
    path: Path,
    *,
    cache_form: CacheForm,
    precision: Precision,
    capacity: int,
    tree: TreeShape,
    embed_rows: Tensor,
    head_rows: Tensor,
) -> None:
    config = drafter.config
    contract = draft_contract(config, tree, precision)
    drafting = TreeDrafting(drafter, tree, embed_rows, head_rows)
    graph = DraftGraph(drafting, cache_form, capacity).eval()
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    if precision != "fp32":
        graph = copy.deepcopy(graph).to(dtype)
    batch, rows = (1 if cache_form == "shared" else 2), 3
    embeddings, features = torch.zeros(2, batch, rows, config.hidden_size, dtype=dtype)
    past = [
        torch.zeros(batch, config.num_kv_heads, capacity, config.head_dim, dtype=dtype)
        for _ in range(2 * drafting.used)
    ]
    args = (embeddings, features, torch.ones(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64), past)
    b = {} if cache_form == "shared" else {0: "batch"}
    c = {2: "capacity"} if cache_form == "shared" else {}
    dynamic = ({**b, 1: "rows"}, {**b, 1: "rows"}, b, b, [{**b, **c}] * len(past))
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            args,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            input_names=[s.name for s in contract.inputs],
            output_names=[s.name for s in contract.outputs],
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=True)

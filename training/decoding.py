"""Many answers at once: the target decodes a batch whose slots are refilled as answers end."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from poss_export.targets.decoder import Attend, Decoder, merge_heads, split_heads
from poss_export.targets.mixing import capped, causal_masks, mix
from poss_export.targets.rope import rope_tables, rotate

REPEATED = 24  # an answer whose last tokens, so many, it has said before has begun to loop
SPAN = 32  # cache columns that a step reads are a multiple of this: few shapes
REFILL = 16  # a prompt waits until one slot in so many is free: prompts are read together


@dataclass
class _Slot:
    request: int
    tokens: list[int]


class BatchDecoder:
    """Decodes prompts with `slots` places and in-place caches of `capacity` tokens each."""

    def __init__(self, decoder: Decoder, slots: int, capacity: int) -> None:
        """Allocate the caches in the decoder's dtype and on its device."""
        config, weight = decoder.config, decoder.embed_tokens
        self.decoder, self.slots, self.device = decoder, slots, weight.device
        self.capacity = capacity
        columns = -(-capacity // SPAN) * SPAN
        # Keys lie column by column, so that scores and mixed values are each one product that copies nothing:
        # a fused attention is three times slower on CPUs where every slot has one query row.
        heads = (config.num_layers, slots, config.num_kv_heads)
        self.keys = torch.zeros(*heads, config.head_dim, columns, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros(*heads, columns, config.head_dim, dtype=weight.dtype, device=weight.device)
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.tables = [
            tuple(
                table.to(self.device, weight.dtype) for table in rope_tables(rope, config.head_dim, columns)
            )
            for rope in config.ropes
        ]

    def run(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        choose: Callable[[Tensor], Tensor],
        over: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (prompt index, new tokens) as answers end.

        `choose` maps logits `[slots, vocab]` to token ids `[slots]`. A prompt too long for its
        answer is left out. An answer ends at a stop id (included), at `max_new_tokens`, or where it loops.
        Each step asks whether all is `over`: then what has not ended is lost.
        """
        waiting = deque(i for i, p in enumerate(prompts) if len(p) + max_new_tokens <= self.capacity)
        active: dict[int, _Slot] = {}
        last = torch.zeros(self.slots, dtype=torch.int64, device=self.device)
        while (waiting or active) and not over():
            free = [place for place in range(self.slots) if place not in active]
            if waiting and len(free) * REFILL >= self.slots:
                filled = {place: waiting.popleft() for place in free[: len(waiting)]}
                first = choose(self._prefill(list(filled), [prompts[i] for i in filled.values()]))
                last[list(filled)] = first
                for (place, request), token in zip(filled.items(), first.tolist(), strict=True):
                    active[place] = _Slot(request, [token])
            for place, slot in list(active.items()):
                if _ended(slot.tokens, max_new_tokens, stop_ids):
                    del active[place]
                    self.lengths[place] = 0
                    yield slot.request, slot.tokens
            if active:
                last = choose(self._step(last))
                chosen = last.tolist()
                for place, slot in active.items():
                    slot.tokens.append(chosen[place])

    @torch.inference_mode()
    def _prefill(self, places: list[int], prompts: list[list[int]]) -> Tensor:
        """Fill the caches of some places; return the logits of each prompt's last row `[places, vocab]`."""
        counts = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        config, seq = self.decoder.config, int(counts.max())
        ids = torch.tensor([prompt + [0] * (seq - len(prompt)) for prompt in prompts], device=self.device)
        rows = torch.tensor(places, device=self.device)
        masks, (scale, cap) = (
            causal_masks(config, seq, self.device),
            (config.attention_scale, config.attention_cap),
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (split_heads(x, config.head_dim) for x in (query, key, value))
            cos, sin = (table[:seq] for table in config.of_layer(layer, self.tables))
            k = rotate(k, cos, sin)
            # Rows behind a prompt are padding: its own rows do not see them, its answer overwrites them.
            self.keys[layer, rows, :, :, :seq] = k.transpose(-1, -2)
            self.values[layer, rows, :, :seq] = v
            mask = config.of_layer(layer, masks)
            return merge_heads(mix(rotate(q, cos, sin), k, v, mask, scale=scale, cap=cap))

        features = self.decoder.hidden(ids, attend)
        self.lengths[rows] = counts
        last = features.gather(1, (counts - 1)[:, None, None].expand(-1, 1, features.shape[-1]))
        return self.decoder.head(last)[:, 0]

    @torch.inference_mode()
    def _step(self, last: Tensor) -> Tensor:
        """Feed one token to every place; return logits `[slots, vocab]` (idle places: nonsense)."""
        features = self.decoder.hidden(last[:, None], self._step_attend())
        self.lengths += 1
        self.lengths.clamp_(max=self.capacity - 1)  # idle places count on; they are reset when filled
        return self.decoder.head(features)[:, 0]

    def _step_attend(self) -> Attend:
        config, places = self.decoder.config, torch.arange(self.slots, device=self.device)
        kv_heads, head_dim = config.num_kv_heads, config.head_dim
        span = -(-(int(self.lengths.max()) + 1) // SPAN) * SPAN
        scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        biases = [
            torch.zeros(hidden.shape, dtype=self.keys.dtype, device=self.device)
            .masked_fill_(hidden, -torch.inf)
            .repeat_interleave(kv_heads, 0)[:, None]
            for hidden in self._hidden(span)
        ]
        rotations = [[table[self.lengths, None, None] for table in tables] for tables in self.tables]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Query heads that share a KV head become query rows, so that no cache is repeated.
            cos, sin = config.of_layer(layer, rotations)
            q = rotate(query.reshape(self.slots, kv_heads, -1, head_dim), cos, sin)
            k = rotate(key.reshape(self.slots, kv_heads, 1, head_dim), cos, sin)[:, :, 0]
            keys, values = self.keys[layer], self.values[layer]
            keys[places, :, :, self.lengths] = k
            values[places, :, self.lengths] = value.reshape(self.slots, kv_heads, head_dim)
            seen = keys.flatten(0, 1)[:, :, :span], values.flatten(0, 1)[:, :span]
            bias = config.of_layer(layer, biases)
            if config.attention_cap is None:
                scores = torch.baddbmm(bias, q.flatten(0, 1), seen[0], alpha=scale)
            else:
                scores = capped(torch.bmm(q.flatten(0, 1), seen[0]) * scale, config.attention_cap) + bias
            return torch.bmm(scores.softmax(-1), seen[1]).reshape(self.slots, 1, -1)

        return attend

    def _hidden(self, span: int) -> list[Tensor]:
        """Return which of the first columns a step may not read, `[slots, span]`: of all, and of windows."""
        columns, last = torch.arange(span, device=self.device), self.lengths[:, None]
        hidden = [columns > last]
        if (window := self.decoder.config.window) is not None:
            hidden.append(hidden[0] | (columns <= last - window))
        return hidden


def _ended(tokens: list[int], max_new_tokens: int, stop_ids: Sequence[int]) -> bool:
    if len(tokens) >= max_new_tokens or tokens[-1] in stop_ids:
        return True
    return len(tokens) % 8 == 0 and _loops(tokens)


def _loops(tokens: list[int]) -> bool:
    tail, at, end = tokens[-REPEATED:], -1, len(tokens) - REPEATED
    with suppress(ValueError):  # raised where the first token of the tail does not come again
        while True:
            at = tokens.index(tail[0], at + 1, end)
            if tokens[at : at + REPEATED] == tail:
                return True
    return False

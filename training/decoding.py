"""Many answers at once: the target decodes a batch whose slots are refilled as answers end."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.targets.decoder import Attend, Decoder, merge_heads, split_heads
from poss_export.targets.mixing import capped, causal_masks, mix
from poss_export.targets.rope import rope_tables, rotate
from poss_export.training.features import BATCH_TOKENS, batches_by_length
from poss_export.training.hardware import rounded

REPEATED = 24  # an answer whose last tokens, so many, it has said before has begun to loop
SPAN = 64  # columns of caches are a multiple of this: few shapes, and few moves
REFILL = 16  # a prompt waits until one slot in so many is free: prompts are read together


@dataclass
class _Slot:
    request: int
    tokens: list[int]


class BatchDecoder:
    """Decodes prompts at up to `slots` places, with room for `capacity` tokens each."""

    def __init__(self, decoder: Decoder, slots: int, capacity: int) -> None:
        """Allocate the caches, in the decoder's dtype and on its device."""
        config, weight = decoder.config, decoder.embed_tokens
        self.decoder, self.slots, self.device = decoder, slots, weight.device
        self.capacity = capacity
        # A product of part of a cache's columns would copy them, which takes longer than to multiply: the
        # memory holds as many columns as the longest answer needs. Fused attention takes longer still where
        # every slot has one query row.
        size = slots * config.num_kv_heads * -(-capacity // SPAN) * SPAN * config.head_dim
        self._memory = torch.zeros(2 * config.num_layers, size, dtype=weight.dtype, device=self.device)
        self.span, self.caches = 0, list[Tensor]()  # keys and values of every layer, as `_views` gives them
        self.lengths = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.busy = torch.zeros(0, dtype=torch.bool, device=self.device)
        self.tables = [
            tuple(
                table.to(self.device, weight.dtype) for table in rope_tables(rope, config.head_dim, capacity)
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

        `choose` maps logits `[places, vocab]` to token ids `[places]`. A prompt too long for its
        answer is left out. An answer ends at a stop id (included), at `max_new_tokens`, or where it loops.
        Each step asks whether all is `over`: then what has not ended is lost.
        """
        waiting = deque(i for i, p in enumerate(prompts) if len(p) + max_new_tokens <= self.capacity)
        active: dict[int, _Slot] = {}
        self._move([], min(self.slots, len(waiting)), 0)
        last = torch.zeros(len(self.lengths), dtype=torch.int64, device=self.device)
        while (waiting or active) and not over():
            free = [place for place in range(len(last)) if place not in active]
            if waiting and len(free) * REFILL >= len(last):
                filled = {place: waiting.popleft() for place in free[: len(waiting)]}
                first = choose(self._prefill(list(filled), [prompts[i] for i in filled.values()]))
                last[list(filled)] = first
                for (place, request), token in zip(filled.items(), first.tolist(), strict=True):
                    active[place] = _Slot(request, [token])
            for place, slot in list(active.items()):
                if _ended(slot.tokens, max_new_tokens, stop_ids):
                    del active[place]
                    self._free(place)
                    yield slot.request, slot.tokens
            if not waiting and 2 * len(active) <= len(last):  # idle places cost as much as others
                last = last[list(active)]
                self._move(list(active), len(active), self.span)
                active = dict(enumerate(active.values()))
            if active:
                last = choose(self._step(last))
                chosen = last.tolist()
                for place, slot in active.items():
                    slot.tokens.append(chosen[place])

    @torch.inference_mode()
    def _free(self, place: int) -> None:
        self.lengths[place], self.busy[place] = 0, False

    @torch.inference_mode()
    def _move(self, kept: list[int], places: int, columns: int) -> None:
        """Make so many places that hold at least so many columns; the first of them are those `kept`."""
        rows = torch.tensor(kept, dtype=torch.int64, device=self.device)
        old, self.span = self.caches, -(-columns // SPAN) * SPAN
        self.caches = self._views(places)
        for before, after in zip(old, self.caches, strict=False):  # there are none before the first call
            seen = before[rows, :, : self.span]
            after[: len(kept), :, : seen.shape[2]] = seen
        self.lengths, self.busy = (
            F.pad(state[rows], (0, places - len(kept))) for state in (self.lengths, self.busy)
        )

    def _views(self, places: int) -> list[Tensor]:
        """Return the caches `[places, kv_heads, span, head_dim]` of keys, values, keys ... by layers."""
        shape = (places, self.decoder.config.num_kv_heads, self.span, self.decoder.config.head_dim)
        return [memory[: prod(shape)].view(shape) for memory in self._memory]

    def _reach(self, columns: int) -> None:
        """Let all places hold so many columns."""
        if columns > self.span or 2 * columns <= self.span - SPAN:
            self._move(list(range(len(self.lengths))), len(self.lengths), columns)

    @torch.inference_mode()
    def _prefill(self, places: list[int], prompts: list[list[int]]) -> Tensor:
        """Fill the caches of some places; return the logits of each prompt's last row `[places, vocab]`."""
        self._reach(max(self.span, *map(len, prompts)))
        lengths, logits = np.array([len(prompt) for prompt in prompts]), dict[int, Tensor]()
        for batch in batches_by_length(lengths, np.arange(len(prompts)), BATCH_TOKENS[self.device.type]):
            read = self._prefill_batch([places[i] for i in batch], [prompts[i] for i in batch])
            logits |= zip(batch.tolist(), read, strict=True)
        return torch.stack([logits[i] for i in range(len(prompts))])

    def _prefill_batch(self, places: list[int], prompts: list[list[int]]) -> Tensor:
        """Do what `_prefill` does, for prompts of about one length."""
        counts = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        config, seq = self.decoder.config, min(rounded(int(counts.max())), self.capacity)
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
            for cache, new in zip(self.caches[2 * layer : 2 * layer + 2], (k, v), strict=True):
                cache[rows, :, :seq] = new
            mask = config.of_layer(layer, masks)
            return merge_heads(mix(rotate(q, cos, sin), k, v, mask, scale=scale, cap=cap))

        features = self.decoder.hidden(ids, attend)
        self.lengths[rows], self.busy[rows] = counts, True
        last = features.gather(1, (counts - 1)[:, None, None].expand(-1, 1, features.shape[-1]))
        return self.decoder.head(last)[:, 0]

    @torch.inference_mode()
    def _step(self, last: Tensor) -> Tensor:
        """Feed one token to every place; return logits `[slots, vocab]` (idle places: nonsense)."""
        self._reach(int(self.lengths.max()) + 1)
        features = self.decoder.hidden(last[:, None], self._step_attend())
        self.lengths += self.busy
        return self.decoder.head(features)[:, 0]

    def _step_attend(self) -> Attend:
        config, places = self.decoder.config, torch.arange(len(self.lengths), device=self.device)
        kv_heads, head_dim = config.num_kv_heads, config.head_dim
        scale = head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        biases = [
            torch.zeros(hidden.shape, dtype=self._memory.dtype, device=self.device)
            .masked_fill_(hidden, -torch.inf)
            .repeat_interleave(kv_heads, 0)[:, None]
            for hidden in self._hidden()
        ]
        rotations = [[table[self.lengths, None, None] for table in tables] for tables in self.tables]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Query heads that share a KV head become query rows, so that no cache is repeated.
            cos, sin = config.of_layer(layer, rotations)
            q = rotate(query.reshape(len(places), kv_heads, -1, head_dim), cos, sin).flatten(0, 1)
            k = rotate(key.reshape(len(places), kv_heads, 1, head_dim), cos, sin)[:, :, 0]
            keys, values = self.caches[2 * layer : 2 * layer + 2]
            keys[places, :, self.lengths] = k
            values[places, :, self.lengths] = value.reshape(len(places), kv_heads, head_dim)
            keys, values, bias = keys.flatten(0, 1).mT, values.flatten(0, 1), config.of_layer(layer, biases)
            if config.attention_cap is None:
                scores = torch.baddbmm(bias, q, keys, alpha=scale)
            else:
                scores = capped(torch.bmm(q, keys) * scale, config.attention_cap) + bias
            return torch.bmm(scores.softmax(-1), values).reshape(len(places), 1, -1)

        return attend

    def _hidden(self) -> list[Tensor]:
        """Return which columns a step may not read, `[places, span]`: of all, and of windows."""
        columns, last = torch.arange(self.span, device=self.device), self.lengths[:, None]
        hidden = [columns > last]
        if (window := self.decoder.config.window) is not None:
            hidden.append(hidden[0] | (columns <= last - window))
        return hidden


def _ended(tokens: list[int], max_new_tokens: int, stop_ids: Sequence[int]) -> bool:
    if len(tokens) >= max_new_tokens or tokens[-1] in stop_ids:
        return True
    return len(tokens) % 8 == 0 and _loops(tokens)


def _loops(tokens: list[int]) -> bool:
    tail, at, end = tokens[-REPEATED:], -1, max(0, len(tokens) - REPEATED)
    with suppress(ValueError):  # raised where the first token of the tail does not come again
        while True:
            at = tokens.index(tail[0], at + 1, end)
            if tokens[at : at + REPEATED] == tail:
                return True
    return False

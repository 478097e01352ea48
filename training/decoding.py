"""Many answers at once: the target decodes a batch whose slots are refilled as answers end."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poss_export.targets.decoder import Attend, Decoder, merge_heads, split_heads
from poss_export.targets.rope import rope_tables, rotate

LOOP_PERIODS = range(1, 25)  # a text that repeats its last p tokens three times has begun to loop


@dataclass
class _Slot:
    request: int
    tokens: list[int]


class BatchDecoder:
    """Decodes prompts with `slots` places and in-place caches of `capacity` tokens each."""

    def __init__(self, decoder: Decoder, slots: int, capacity: int) -> None:
        """Allocate the caches in the decoder's dtype and on its device."""
        config, weight = decoder.config, decoder.embed_tokens
        self.decoder, self.slots, self.capacity, self.device = decoder, slots, capacity, weight.device
        shape = (2, config.num_layers, slots, config.num_kv_heads, capacity, config.head_dim)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=self.device)
        tables = rope_tables(config.rope, config.head_dim, capacity)
        self.cos, self.sin = (table.to(self.device, weight.dtype) for table in tables)

    def run(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        choose: Callable[[Tensor], Tensor],
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (prompt index, new tokens) as answers end.

        `choose` maps logits `[slots, vocab]` to token ids `[slots]`. A prompt too long for its
        answer is left out. An answer ends at a stop id (included), at `max_new_tokens`, or where it loops.
        """
        waiting = [i for i, p in enumerate(prompts) if len(p) + max_new_tokens <= self.capacity][::-1]
        active: dict[int, _Slot] = {}
        last = torch.zeros(self.slots, dtype=torch.int64, device=self.device)
        while waiting or active:
            for place in range(self.slots):
                if place not in active and waiting:
                    request = waiting.pop()
                    last[place] = choose(self._prefill(place, prompts[request]))[0]
                    active[place] = _Slot(request, [int(last[place])])
            for place, slot in list(active.items()):
                if _ended(slot.tokens, max_new_tokens, stop_ids):
                    del active[place]
                    self.lengths[place] = 0
                    yield slot.request, slot.tokens
            if active:
                last = choose(self._step(last))
                for place, slot in active.items():
                    slot.tokens.append(int(last[place]))

    @torch.inference_mode()
    def _prefill(self, place: int, prompt: list[int]) -> Tensor:
        """Fill the caches of one place; return the last row's logits `[1, vocab]`."""
        seq, head_dim = len(prompt), self.decoder.config.head_dim
        cos, sin = self.cos[:seq], self.sin[:seq]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (split_heads(x, head_dim) for x in (query, key, value))
            k = rotate(k, cos, sin)
            self.cache[0, layer, place, :, :seq], self.cache[1, layer, place, :, :seq] = k[0], v[0]
            return merge_heads(
                F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True, enable_gqa=True)
            )

        features = self.decoder.hidden(torch.tensor([prompt], device=self.device), attend)
        self.lengths[place] = seq
        return self.decoder.head(features[:, -1:])[:, 0]

    @torch.inference_mode()
    def _step(self, last: Tensor) -> Tensor:
        """Feed one token to every place; return logits `[slots, vocab]` (idle places: nonsense)."""
        features = self.decoder.hidden(last[:, None], self._step_attend())
        self.lengths += 1
        self.lengths.clamp_(max=self.capacity - 1)  # idle places count on; they are reset when filled
        return self.decoder.head(features)[:, 0]

    def _step_attend(self) -> Attend:
        config, places = self.decoder.config, torch.arange(self.slots, device=self.device)
        span = int(self.lengths.max()) + 1
        mask = torch.arange(span, device=self.device) <= self.lengths[:, None]
        cos, sin = self.cos[self.lengths, None, None], self.sin[self.lengths, None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Query heads that share a KV head become query rows, so that no cache is repeated.
            q = rotate(query.reshape(self.slots, config.num_kv_heads, -1, config.head_dim), cos, sin)
            k = rotate(key.reshape(self.slots, config.num_kv_heads, 1, config.head_dim), cos, sin)[:, :, 0]
            v = value.reshape(self.slots, config.num_kv_heads, config.head_dim)
            keys, values = self.cache[0, layer], self.cache[1, layer]
            keys[places, :, self.lengths], values[places, :, self.lengths] = k, v
            mixed = F.scaled_dot_product_attention(
                q, keys[:, :, :span], values[:, :, :span], attn_mask=mask[:, None, None]
            )
            return mixed.reshape(self.slots, 1, -1)

        return attend


def _ended(tokens: list[int], max_new_tokens: int, stop_ids: Sequence[int]) -> bool:
    if len(tokens) >= max_new_tokens or tokens[-1] in stop_ids:
        return True
    return any(
        len(tokens) >= 3 * max(p, 8)
        and tokens[-p:] == tokens[-2 * p : -p] == tokens[-3 * p : -2 * p]
        and (p > 7 or tokens[-p:] * (24 // p) == tokens[-(24 // p) * p :])
        for p in LOOP_PERIODS
    )

"""Decoders that read a layer when they come to it, and weights that are read in blocks."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from poss_export.exporters.target import export_target
from poss_export.targets import weights
from poss_export.targets.checkpoint import open_target
from poss_export.targets.decoder import Layer, causal_attend
from poss_export.targets.weights import Stored, Weight
from tests.fixtures.write_gguf import write_gguf

IDS = torch.tensor([[5, 17, 60, 3, 44], [95, 0, 9, 71, 2]])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is a few rows of a tiny target's matrices, and no whole number of heads."""
    monkeypatch.setattr(weights, "_BLOCK", 7 * 64)


@pytest.mark.parametrize("name", ["llama", "biased", "qwen3", "gemma2", "granite", "phi4", "mixtral"])
@torch.no_grad()
def test_a_streamed_decoder_computes_what_the_loaded_one_does(
    tiny_folder: Callable[[str], Path], name: str
) -> None:
    target = open_target(str(tiny_folder(name)))
    loaded, streamed = target.load_decoder(), target.stream_decoder()
    attend = causal_attend(target.config, IDS.shape[1], torch.float32)
    for one, other in zip(
        loaded.hidden_and_read(IDS, attend, (0, 1)),
        streamed.hidden_and_read(IDS, attend, (0, 1)),
        strict=True,
    ):
        assert torch.equal(one, other)
        torch.testing.assert_close(loaded.head(one[..., :64]), streamed.head(other[..., :64]))
    assert torch.equal(loaded.embed(IDS), streamed.embed(IDS))
    assert torch.equal(loaded.head_rows(IDS), streamed.head_rows(IDS))


def test_blocks_of_gguf_rows_are_the_rows(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Rows of its q and k projections are in another order within each head."""
    expected = open_target(str(tiny_folder("llama"))).load_decoder().state_dict()
    target = open_target(str(write_gguf(tmp_path / "a.gguf", tiny_folder("llama"), "llama")))
    for name, weight in target.weights().items():
        assert torch.equal(weight.read(), expected[name]), name


def test_layers_are_not_kept(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = open_target(str(tiny_folder("llama"))).stream_decoder()
    alive: list[Any] = []

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        gc.collect()
        assert all(one() is None for one in alive[:-1])
        return query

    def watched(index: int) -> Layer:
        layer = read(index)
        alive.append(weakref.ref(layer.qkv.weight))
        return layer

    read = streamed.layer
    monkeypatch.setattr(streamed, "layer", watched)
    streamed.hidden(IDS, attend)
    assert len(alive) == 2
    assert {name for name, weight in streamed.named_parameters() if not weight.is_meta} == {"norm.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_weights_are_joined_turned_and_converted(dtype: torch.dtype) -> None:
    parts = torch.arange(600.0).view(20, 30), torch.arange(90.0).view(3, 30)

    def read(part: torch.Tensor, first: int, last: int) -> torch.Tensor:
        return part[first:last].double()

    stored = tuple(Stored(tuple(part.shape), torch.float64, partial(read, part)) for part in parts)
    joined = torch.cat(parts)
    assert torch.equal(Weight(stored).read(dtype), joined.to(dtype))
    turned = Weight(stored, transposed=True)
    assert turned.shape == (30, 23)
    assert torch.equal(turned.read(dtype), joined.T.to(dtype))
    assert turned.read(dtype).is_contiguous()
    ids = torch.tensor([[19, 0, 7], [8, 7, 14]])
    assert torch.equal(Weight(stored[:1]).rows(ids), parts[0][ids])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exports_of_both_are_the_same(
    tiny_folder: Callable[[str], Path], tmp_path: Path, precision: Any
) -> None:
    target = open_target(str(tiny_folder("qwen2")))
    for decoder in (target.load_decoder(), target.stream_decoder()):
        folder = tmp_path / type(decoder).__name__
        folder.mkdir()
        shape: Any = {"cache_form": "static", "precision": precision, "capacity": 48}
        export_target(decoder, folder / "t.onnx", **shape)
    for name in ("t.onnx", "t.onnx.data"):
        files = [folder / name for folder in tmp_path.iterdir()]
        assert len(files) == 2
        assert files[0].read_bytes() == files[1].read_bytes()

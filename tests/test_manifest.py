import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from poss_export import manifest as m
from poss_export.config import RopeConfig, TargetConfig, TreeShape
from poss_export.drafter_config import DrafterConfig
from poss_export.errors import BundleError, InputError
from poss_export.exactness import Exactness, floating
from poss_export.text import TextConfig

TARGET = TargetConfig(
    architecture="llama",
    vocab_size=6,
    hidden_size=4,
    intermediate_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    rms_norm_eps=1e-5,
    max_positions=64,
    rope=RopeConfig(theta=1e4, scaling="llama3", factor=8.0),
)
DRAFTER = DrafterConfig(
    hidden_size=4,
    intermediate_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    rms_norm_eps=1e-5,
    vocab_size=6,
    draft_vocab_size=3,
    num_specialists=3,
    positions_per_specialist=2,
)


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, m.Manifest]:
    table = np.arange(24, dtype=np.float32).reshape(6, 4)
    (tmp_path / "target.onnx").write_bytes(b"graph")
    (tmp_path / "target.onnx.data").write_bytes(b"\0" * 16 + table.tobytes())
    manifest = m.Manifest(
        target=m.TargetEntry(
            "tiny", "0" * 64, TARGET, m.EmbeddingTable("target.onnx.data", 16, "float32", (6, 4))
        ),
        drafter=m.DrafterEntry("poss-2", "1" * 64, DRAFTER, TreeShape(3, 2, 5)),
        precision="fp32",
        cache_form="shared",
        capacity=32,
        text=TextConfig(stop_ids=(2,), chat_template="{{ é }}", special_tokens=(("bos_token", "<s>"),)),
        created="2026-11-23T08:00:00+00:00",
        argv=("poss-export", "build"),
        versions={"onnxruntime": "1.32.0"},
        parity={"target_logits": 1e-6},
        files=m.describe_files(tmp_path, ["target.onnx.data", "target.onnx"]),
    )
    m.write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_reads_what_was_written(bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    assert m.read_manifest(folder) == manifest
    assert m.read_manifest(folder, full=True) == manifest
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "target.onnx",
        "target.onnx.data",
    ]


def test_bundle_without_drafter(bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    plain = replace(manifest, drafter=None)
    m.write_manifest(folder, plain)
    assert m.read_manifest(folder) == plain


def test_embedding_table_is_mapped(bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    table = manifest.target.embedding.open(folder)
    np.testing.assert_array_equal(table[[0, 5]], [[0, 1, 2, 3], [20, 21, 22, 23]])


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no bundle folder at .*nowhere"):
        m.read_manifest(tmp_path / "nowhere")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle, or its build did not finish"):
        m.read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '"x"', "\x00"])
def test_not_a_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="is not a manifest"):
        m.read_manifest(tmp_path)


def test_edited_manifest(bundle: tuple[Path, m.Manifest]) -> None:
    folder, _ = bundle
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"capacity": 32', '"capacity": 64'))
    with pytest.raises(BundleError, match="was changed after the build"):
        m.read_manifest(folder)


FIELDS = (
    *("target", "drafter", "precision", "cache_form", "capacity", "text", "created", "argv"),
    *("versions", "parity", "files", "in_pieces", "engines", "quantisation", "quality", "calibration"),
    "beside",
)


@pytest.mark.parametrize("field", FIELDS)
def test_an_edited_field_is_named(field: str, bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    assert set(manifest.to_dict()) <= values.keys()
    path.write_text(json.dumps({**values, field: ["edited"]}))
    with pytest.raises(BundleError, match=rf"its hash does not match \(field: {field}\); restore it"):
        m.read_manifest(folder)


def test_the_list_of_edited_fields_is_complete(bundle: tuple[Path, m.Manifest]) -> None:
    assert set(FIELDS) == bundle[1].to_dict().keys()


def test_other_format_version(bundle: tuple[Path, m.Manifest]) -> None:
    folder, _ = bundle
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(BundleError, match=f"format version 99, this release reads {m.FORMAT_VERSION}"):
        m.read_manifest(folder)


def test_missing_file(bundle: tuple[Path, m.Manifest]) -> None:
    folder, _ = bundle
    (folder / "target.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"target\.onnx\.data' is missing"):
        m.read_manifest(folder)


def test_truncated_file(bundle: tuple[Path, m.Manifest]) -> None:
    folder, _ = bundle
    (folder / "target.onnx.data").write_bytes(b"\0" * 7)
    with pytest.raises(BundleError, match="has 7 bytes, the manifest says 112"):
        m.read_manifest(folder)


def test_changed_file(bundle: tuple[Path, m.Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = bundle
    (folder / "target.onnx").write_bytes(b"grapx")
    with pytest.raises(BundleError, match=r"target\.onnx' was changed after the build"):
        m.read_manifest(folder)
    monkeypatch.setattr(m, "SMALL_FILE", 4)  # now it counts as a large file
    assert m.read_manifest(folder) == manifest
    with pytest.raises(BundleError, match=r"target\.onnx' was changed after the build"):
        m.read_manifest(folder, full=True)


def test_file_outside_the_folder(bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    entry = manifest.files["target.onnx"]
    m.write_manifest(folder, replace(manifest, files={"../target.onnx": entry}))
    with pytest.raises(BundleError, match="not a plain file name"):
        m.read_manifest(folder)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        (None, Exactness(1, None, None)),
        ({}, Exactness(1, None, None)),
        ({"least_width": None, "siblings": 0.0}, Exactness(None, None, None)),
        ({"least_width": 4, "siblings": 0.5}, Exactness(4, 0.0, None)),
        ({"least_width": 4, "siblings": 0.0}, Exactness(4, 0.0, None)),  # hidden, not absent
        # Two logits may part by twice what one changes by; a wider tie than a thousandth is none.
        ({"least_width": 4, "siblings": 0.0004}, Exactness(4, 0.0, 0.0008)),
        ({"least_width": 4, "siblings": 0.0006}, Exactness(4, 0.0, None)),
    ],
)
def test_what_was_measured_is_claimed(
    widths: dict[str, object] | None, expected: Exactness, bundle: tuple[Path, m.Manifest]
) -> None:
    folder, manifest = bundle
    quality = None if widths is None else {"widths": widths}
    quantised = replace(manifest, quantisation={"target": {"scheme": "w8a8"}}, quality=quality)
    m.write_manifest(folder, quantised)
    exactness = m.read_manifest(folder).exactness
    assert exactness == expected
    assert exactness.claims(chain=True) is (expected.chain_tie is not None)
    assert exactness.claims(chain=False) is (expected.tree_tie is not None)


def test_floating_point_claims_everything_but_near_ties(bundle: tuple[Path, m.Manifest]) -> None:
    _, manifest = bundle
    assert manifest.exactness == floating("fp32")
    assert replace(manifest, quantisation={"draft": {"scheme": "w8a8"}}).exactness == floating("fp32")
    assert floating("fp32").tie(chain=True) == floating("fp32").tie(chain=False) == 1e-4


def test_labels_are_the_command_line_s(bundle: tuple[Path, m.Manifest]) -> None:
    folder, manifest = bundle
    m.write_manifest(folder, replace(manifest, quantisation={"target": {"scheme": "int4"}}))
    read = m.read_manifest(folder)
    assert (read.label("target"), read.label("draft")) == ("int4", "fp32")

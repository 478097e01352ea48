import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from poss_export.errors import BackendError, BundleError, InputError, PromptError
from poss_export.manifest import Manifest, describe_files, read_manifest, write_manifest
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sampling import Sampling
from poss_export.text import user_says

PROMPT = "<5>"
Change = Callable[..., Path]


@pytest.fixture
def edited(tiny_bundle: Path, tmp_path: Path) -> Change:
    """Return edited(edit): a copy of the tiny bundle whose manifest, still valid, is edit(manifest)."""

    def make(edit: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> Path:
        folder = tmp_path / "bundle"
        if not folder.exists():
            shutil.copytree(tiny_bundle, folder)
        manifest = edit(read_manifest(tiny_bundle))
        names = [name for name in manifest.files if (folder / name).exists()]
        write_manifest(folder, replace(manifest, files=describe_files(folder, names)))
        return folder

    return make


def test_answers_are_the_targets(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        plain = bundle.generate(PROMPT, raw=True, target_only=True, max_new_tokens=99)
        drafted = bundle.generate(PROMPT, raw=True, max_new_tokens=99)
        stream = bundle.stream(PROMPT, raw=True, max_new_tokens=99)
        assert "".join(stream) == drafted.text == plain.text
    assert drafted.token_ids == plain.token_ids == stream.result.token_ids
    assert drafted.finish_reason == plain.finish_reason
    assert drafted.rounds <= plain.rounds
    assert 0 < drafted.draft_seconds < drafted.seconds
    json.dumps(drafted.to_dict())


def test_sampling_through_the_bundle(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        answers = [
            bundle.generate(PROMPT, raw=True, sampling=Sampling(1.5, seed=seed)).token_ids
            for seed in (1, 1, 2)
        ]
    assert answers[0] == answers[1] != answers[2]


def test_a_conversation_asks_each_turn_behind_the_answer_before_it(chat_bundle: Path) -> None:
    prompt = Prompt("p", ("<5> <9>", "<7>"))
    with open_bundle(chat_bundle, threads=1) as bundle:
        one, two = bundle.converse(prompt, max_new_tokens=6)
        messages = [user_says("<5> <9>"), {"role": "assistant", "content": one.text}, user_says("<7>")]
        assert two.token_ids == bundle.generate(messages, max_new_tokens=6).token_ids
        assert (one.prompt, two.prompt) == ("<5> <9>", "<7>")
        assert one.token_ids == bundle.generate("<5> <9>", max_new_tokens=6).token_ids


def test_messages_before_the_first_turn_are_part_of_every_prompt(chat_bundle: Path) -> None:
    system = {"role": "system", "content": "<8>"}
    with open_bundle(chat_bundle, threads=1) as bundle:
        streams = bundle.conversation(Prompt("p", ("<5>", "<7>"), before=(system,)), max_new_tokens=3)
        first = next(streams)
        assert first.prompt_ids.tolist() == bundle.encode([system, user_says("<5>")])
        behind = [
            system,
            user_says("<5>"),
            {"role": "assistant", "content": first.run().text},
            user_says("<7>"),
        ]
        assert next(streams).prompt_ids.tolist() == bundle.encode(behind)
        with pytest.raises(PromptError, match="'p' has messages before its turn, which take a chat template"):
            bundle.converse(Prompt("p", ("<5>",), before=(system,)), raw=True)


def test_template_variables_and_control_tokens(tiny_bundle: Path, changed: Callable[..., Path]) -> None:
    template = "{% for m in messages %}<1> {{ m.content }} <2> {% endfor %}{% if brief %}<4>{% endif %}"
    text = replace(read_manifest(tiny_bundle).text, chat_template=template)
    with open_bundle(changed(text=text), threads=1) as bundle:
        bundle.text.tokenizer.add_special_tokens(["<2>"])
        plain = bundle.encode("<5>")
        assert bundle.encode("<5>", variables={"brief": True}) == [*plain, 4]
        assert bundle.generate("<5>", variables={"brief": True}, max_new_tokens=2).prompt == "<5>"
        with pytest.raises(InputError, match="no variable 'long'; it reads brief"):
            bundle.stream("<5>", variables={"long": True})
        with pytest.raises(InputError, match=r"variables \(brief\) are of the chat template"):
            bundle.encode("<5>", raw=True, variables={"brief": True})
        with pytest.raises(PromptError, match="half of a character"):
            bundle.encode("<5>", variables={"brief": "\ud800"})
        assert bundle.encode("<5> <2> <6>", control_tokens=True).count(2) == 2
        with pytest.raises(PromptError, match="no other ids for the text '<2>'"):  # a word is one token
            bundle.encode("<5> <2> <6>")


def test_a_turn_that_nobody_read_to_its_end_is_answered_all_the_same(chat_bundle: Path) -> None:
    prompt = Prompt("p", ("<5> <9>", "<7>"))
    with open_bundle(chat_bundle, threads=1) as bundle:
        whole = [answer.token_ids for answer in bundle.converse(prompt, max_new_tokens=6)]
        one, two = bundle.conversation(prompt, max_new_tokens=6)
        assert [one.result.token_ids, two.run().token_ids] == whole


def test_plain_text_has_one_turn(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle, threads=1) as bundle:
        (answer,) = bundle.converse(Prompt("p", ("<5>",)), raw=True, max_new_tokens=4)
        assert answer.token_ids == bundle.generate("<5>", raw=True, max_new_tokens=4).token_ids
        with pytest.raises(InputError, match="prompt 'p' has 2 turns, which take a chat template"):
            bundle.converse(Prompt("p", ("<5>", "<6>")), raw=True)
        with pytest.raises(InputError, match="messages have no plain text"):
            bundle.encode([user_says("<5>")], raw=True)
        with pytest.raises(InputError, match="the prompt is empty"):
            bundle.encode([user_says("")])


def test_a_bundle_can_be_entered_again(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle, threads=1)
    with bundle:
        first = bundle.generate(PROMPT, raw=True, max_new_tokens=5)
    with bundle:
        assert bundle.generate(PROMPT, raw=True, max_new_tokens=5).token_ids == first.token_ids


def test_bundle_without_drafter(edited: Change) -> None:
    folder = edited(lambda manifest: replace(manifest, drafter=None))
    with open_bundle(folder, threads=1) as bundle:
        plain = bundle.generate(PROMPT, raw=True, target_only=True, max_new_tokens=40)
        looked_up = bundle.generate(PROMPT, raw=True, max_new_tokens=40)
        assert plain.tau == 1.0
        assert looked_up.token_ids == plain.token_ids
        assert looked_up.summary.rounds.keys() <= {"plain", "lookup"}
        assert looked_up.summary.expected_seconds is not None


def test_runs_without_torch_transformers_and_onnx(tiny_bundle: Path) -> None:
    """As in a deployment: loading any of them, even lazily, would fail here."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "onnx", "onnxscript", "gguf", "safetensors"]))
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.sampling import Sampling
from poss_export.text import user_says
with open_bundle({str(tiny_bundle)!r}, threads=1) as bundle:
    for sampling in (Sampling(), Sampling(1.0, top_k=5, top_p=0.9)):
        print(bundle.generate("<5>", raw=True, sampling=sampling, max_new_tokens=8).tokens)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("8\n8\n", "")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda m: replace(m, target=replace(m.target, config=replace(m.target.config, vocab_size=100))),
            r"embedding shape in the manifest: \(96, 64\), but the target needs \(100, 64\)",
        ),
        (
            lambda m: replace(m, target=replace(m.target, config=replace(m.target.config, num_layers=3))),
            r"target\.onnx: input 'past_key_values\.2\.key' is missing",
        ),
        (
            lambda m: replace(
                m, drafter=replace(m.drafter, config=replace(m.drafter.config, hidden_size=32))
            ),
            "drafter hidden size in the manifest: 32, but the target needs 64",
        ),
        (
            lambda m: replace(m, drafter=replace(m.drafter, config=replace(m.drafter.config, vocab_size=9))),
            "drafter vocabulary in the manifest: 9, but the target needs 96",
        ),
        (
            lambda m: replace(m, drafter=replace(m.drafter, tree=replace(m.drafter.tree, nodes=9))),
            r"draft\.onnx: output 'tree_tokens' is int64 \[.*, 8\], expected int64 \['batch', 9\]",
        ),
        (lambda m: replace(m, precision="fp16"), "embedding dtype in the manifest: float32"),
        (
            lambda m: replace(m, text=replace(m.text, stop_ids=(96,))),
            "reach token 96, the target has 96 tokens",
        ),
    ],
)
def test_parts_that_do_not_fit(edited: Change, edit: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message), open_bundle(edited(edit), threads=1):
        pass


def test_missing_graph(edited: Change) -> None:
    folder = edited()
    (folder / "draft.onnx").unlink()
    with pytest.raises(BundleError, match=r"draft\.onnx' is missing"):
        open_bundle(folder)
    with pytest.raises(BundleError, match="files in the manifest"):
        open_bundle(edited())  # a manifest that does not know of it either


def test_damaged_tokenizer(edited: Change) -> None:
    folder = edited()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read"), open_bundle(edited()):
        pass


def test_failed_loading_frees_what_was_loaded(edited: Change) -> None:
    folder = edited()
    (folder / "draft.onnx").write_bytes(b"not a graph")
    bundle = open_bundle(edited())
    with pytest.raises(BackendError, match=r"refuses .*draft\.onnx"), bundle:
        pass
    assert not hasattr(bundle.target, "_session")


def test_cuda_needs_static_caches(tiny_bundle: Path, edited: Change) -> None:
    with pytest.raises(BackendError, match="has shared caches, which only the CPU provider runs"):
        open_bundle(tiny_bundle, provider="cuda")
    static = edited(lambda manifest: replace(manifest, cache_form="static"))
    with pytest.raises(BackendError, match="has no CUDA provider"), open_bundle(static, provider="cuda"):
        pass


def test_prompt_with_a_token_that_only_the_tokenizer_knows(edited: Change) -> None:
    folder = edited()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with open_bundle(edited(), threads=1) as bundle:
        assert bundle.generate(PROMPT, raw=True, max_new_tokens=3).tokens == 3
        with pytest.raises(InputError, match="the prompt holds token 96, the target has 96 tokens"):
            bundle.stream("<pad>", raw=True)


def test_bad_requests(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="threads is 0"):
        open_bundle(tiny_bundle, threads=0)
    with pytest.raises(InputError, match="the prompt is empty"):
        open_bundle(tiny_bundle).stream("")
    with pytest.raises(InputError, match="the prompt is empty"):
        open_bundle(tiny_bundle).stream([])


def test_bfloat16_is_not_for_onnx_runtime(engine_bundle: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match="is in bf16, which ONNX Runtime does not run here"):
        open_bundle(engine_bundle("bf16"))

"""Each fault, planted in a real bundle, is caught by the checks of `verify` whose names say what broke."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poss_export.config import TreeShape
from poss_export.contract import target_contract
from poss_export.evaluation import checks, distribution, filters, laws, rounds
from poss_export.evaluation.differences import TOLERANCE
from poss_export.evaluation.parity import check_parity
from poss_export.prompts import as_prompts
from poss_export.reference import Reference
from poss_export.runtime import sampling, sequence, verify
from poss_export.runtime.bundle import Bundle, open_bundle
from poss_export.runtime.planning.planner import WholeTrees
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import CachedSession
from poss_export.runtime.sessions.caches import HostCaches
from poss_export.runtime.sessions.ort import OrtDraftSession, OrtOptions, OrtTargetSession
from poss_export.runtime.transcript import Transcript
from poss_export.runtime.tree import DraftTree

PROMPTS = as_prompts(["<5> <9>", *(f"<{number}>" for number in range(7, 13))])
TREE = TreeShape(depth=4, top_k=3, nodes=8)

PARITY_OF_TARGET = {"parity: target features", "parity: target logits"}
DRAFTS = "parity: draft scores"
STEPS, PATHS, COMMIT = "n tokens = n steps", "tree = its paths", "commit = fresh run"
PARTS = "draft rows at once = in parts"
NEXT = "next token = highest logit"
GREEDY, SAMPLED = (f"{kind}: speculative = target-only" for kind in ("greedy", "sampled"))
ACCEPTED, AFRESH = rounds.ACCEPTED, rounds.AFRESH
FILTERS, DISTRIBUTION = "sampling: filters", "sampling: distribution"


@pytest.fixture(scope="module")
def reference(tiny_folder: Callable[[str], Path], random_drafter: Any) -> Reference:
    from poss_export.exporters.reference import make_reference, round_beside
    from poss_export.targets.checkpoint import open_target

    target = open_target(str(tiny_folder("llama")))
    decoder = target.load_decoder()
    return make_reference(decoder, round_beside(decoder, random_drafter(target.config, 3), TREE))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle, threads=1) as opened:
        yield opened


def broken(bundle: Bundle, reference: Reference) -> set[str]:
    """Return the names of the checks that fail."""

    def silent(_: str) -> None:
        pass

    made = [
        *check_parity(bundle, reference),
        *checks.check_cache_laws(bundle),
        checks.check_greedy(bundle, PROMPTS, 30, silent),
        checks.check_sampled(bundle, PROMPTS, 30, silent),
        *rounds.check_rounds(bundle, PROMPTS, 30, silent),
        filters.check_filters(bundle.manifest.target.config.vocab_size),
        checks.check_sampling(bundle, PROMPTS, 4000, silent),
    ]
    return {check.name for check in made if check.passed is False}


def test_without_a_fault_nothing_fails(bundle: Bundle, reference: Reference) -> None:
    assert broken(bundle, reference) == set()


Plant = Callable[[pytest.MonkeyPatch], None]


def found_by(name: str) -> Callable[[DraftTree], Any]:
    """Return the function behind a cached property of trees."""
    function: Callable[[DraftTree], Any] = vars(DraftTree)[name].func
    return function


def accept_the_first(patch: pytest.MonkeyPatch) -> None:
    """Accept the likeliest child, whatever the target says."""

    def walk(tree: DraftTree, wanted: Any) -> Round:
        path = [0]
        while tree.children[path[-1]]:
            path.append(tree.children[path[-1]][0])
        return Round(tree, tuple(path), wanted(path))

    patch.setattr(verify, "walk", walk)


def accept_nothing(patch: pytest.MonkeyPatch) -> None:
    """Lossless, and every draft is in vain."""
    patch.setattr(verify, "walk", lambda tree, wanted: Round(tree, (0,), wanted([0])))


def accept_no_second_child(patch: pytest.MonkeyPatch) -> None:
    """Look at the likeliest child only."""
    children = found_by("children")
    patch.setattr(DraftTree, "children", property(lambda tree: [c[:1] for c in children(tree)]))


def bit(row: int, column: int) -> Plant:
    """Return how to turn one bit of a mask over: a node sees another, or does not see its ancestor."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        mask = found_by("mask")

        def wrong(tree: DraftTree) -> Any:
            bits = mask(tree).copy()
            if len(tree) > max(row, column) and not tree.is_chain:
                bits[row, column] ^= True
            return bits

        patch.setattr(DraftTree, "mask", property(wrong))

    return plant


def move(fault: Callable[[Any, int, Any, int], None]) -> Plant:
    return lambda patch: patch.setattr(HostCaches, "move", fault)


def to_the_next_row(caches: HostCaches, slot: int, sources: Any, to: int) -> None:
    rows = caches.block[:, slot]
    rows[..., to + 1 : to + 1 + len(sources), :] = rows[..., sources, :]


def in_one_head(caches: HostCaches, slot: int, sources: Any, to: int) -> None:
    """Forget the last head of the last tensor."""
    rows = caches.block[:, slot]
    forgotten = rows[-1, -1, to : to + len(sources)].copy()
    rows[..., to : to + len(sources), :] = rows[..., sources, :]
    rows[-1, -1, to : to + len(sources)] = forgotten


def all_but_the_last(caches: HostCaches, slot: int, sources: Any, to: int) -> None:
    rows = caches.block[:, slot]
    rows[..., to : to + len(sources) - 1, :] = rows[..., sources[:-1], :]


def depths(fault: Callable[[Any], Any]) -> Plant:
    original = found_by("depths")
    return lambda patch: patch.setattr(DraftTree, "depths", property(lambda tree: fault(original(tree))))


def one_deeper(found: Any) -> Any:
    """Be one off behind the root."""
    return found + (found > 0)


def by_place(found: Any) -> Any:
    return np.arange(len(found))


def forget_the_past(patch: pytest.MonkeyPatch) -> None:
    """Count positions from the call's first token."""
    forward = OrtTargetSession.forward

    def wrong(session: Any, tree: DraftTree, *rest: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            length = session.length()
            inner.setattr(DraftTree, "depths", property(lambda t: DEPTHS(t) - length))
            return forward(session, tree, *rest, **named)

    patch.setattr(OrtTargetSession, "forward", wrong)


DEPTHS = found_by("depths")


def chosen_one_row_early(patch: pytest.MonkeyPatch) -> None:
    """Let a graph's own choice be that of another row than its logits."""
    forward = OrtTargetSession.forward

    def wrong(session: Any, *call: Any, **named: Any) -> Any:
        output = forward(session, *call, **named)
        return replace(output, next_tokens=np.roll(output.next_tokens, 1))

    patch.setattr(OrtTargetSession, "forward", wrong)


def drop_the_bonus(patch: pytest.MonkeyPatch) -> None:
    """Emit what was accepted, and the target's own token only where nothing was."""
    add = Transcript.add
    patch.setattr(Transcript, "add", lambda one, tokens: add(one, tokens[:-1] or tokens))


def count_rounds(patch: pytest.MonkeyPatch) -> None:
    """Take the random numbers of the round in place of those of the position."""

    advance = Sequence.advance

    def counting(one: Sequence, *made: Any) -> None:
        advance(one, *made)
        one.__dict__["made"] = one.__dict__.get("made", 1) + 1

    patch.setattr(Sequence, "advance", counting)
    patch.setattr(
        Sequence, "position", property(lambda one: len(one.prompt) + one.__dict__.get("made", one.emitted))
    )


def one_number_for_a_path(patch: pytest.MonkeyPatch) -> None:
    """Draw every token of a path with the random numbers of its first."""

    def noise(seed: int | None) -> Any:
        made, drawn = sampling.Noise(seed), dict[int, Any]()
        return lambda position, vocab: drawn.setdefault(position // 4, made(position // 4, vocab))

    patch.setattr(verify, "Noise", noise)


def the_same_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "Noise", lambda seed: lambda position, vocab: sampling.Noise(seed)(0, vocab))


def lean(patch: pytest.MonkeyPatch) -> None:
    """Draw unlikely tokens a little too often."""
    draw = sampling.draw
    patch.setattr(verify, "draw", lambda q, noise: draw(q**0.8, noise))


def order(*steps: str) -> Plant:
    """Return how to apply filters in another order."""

    def warp(logits: Any, asked: Sampling) -> Any:
        q = np.exp(logits - logits.max(), dtype=np.float32)
        for step in steps:
            only = Sampling(1.0, **({step: getattr(asked, step)} if step != "temperature" else {}))
            with np.errstate(divide="ignore"):
                q = q ** np.float32(1 / asked.temperature) if step == "temperature" else WARP(np.log(q), only)
        return q / q.sum()

    def plant(patch: pytest.MonkeyPatch) -> None:
        for module in (sampling, verify, distribution, filters):
            patch.setattr(module, "warp", warp)

    return plant


WARP = sampling.warp


def stale_trees(patch: pytest.MonkeyPatch) -> None:
    """Propose what was drawn a round ago."""
    propose = WholeTrees.propose

    def wrong(planner: Any, one: Sequence, drafter: Any, room: int) -> DraftTree:
        tree = propose(planner, one, drafter, room)
        old: DraftTree = one.__dict__.get("stale", tree)
        one.__dict__["stale"] = tree
        return old.first(room)

    patch.setattr(WholeTrees, "propose", wrong)


def stale_features(patch: pytest.MonkeyPatch) -> None:
    """Show the drafter the first rows of a tree in place of those of the path."""

    def advance(one: Sequence, done: Round, output: Any) -> None:
        one.keep(done.tokens, output.features[: len(done.path)].copy())
        one.emitted += len(done.path)
        one.planner.learn(done)

    patch.setattr(sequence.Sequence, "advance", advance)


def unread_rows(patch: pytest.MonkeyPatch) -> None:
    """Show the drafter the last row of a round only."""
    take = Sequence.take_unread

    def wrong(one: Sequence) -> Any:
        t, f = take(one)
        return (t, f) if one.emitted < 2 else (t[-1:], f[-1:])

    patch.setattr(Sequence, "take_unread", wrong)


def another_embedding(patch: pytest.MonkeyPatch) -> None:
    """Read the row of the next token in the table of embeddings."""
    propose = OrtDraftSession.propose

    def wrong(session: Any, tokens: Any, *rest: Any) -> DraftTree:
        tree = propose(session, (tokens + 1) % 96, *rest)
        return DraftTree(np.append(tokens[-1], tree.tokens[1:]), tree.parents, tree.scores)

    patch.setattr(OrtDraftSession, "propose", wrong)


def misnamed(patch: pytest.MonkeyPatch) -> None:
    """Say the neighbour of each token of the draft vocabulary."""
    propose = OrtDraftSession.propose

    def wrong(session: Any, *call: Any) -> DraftTree:
        tree = propose(session, *call)
        tokens = np.append(tree.tokens[0], (tree.tokens[1:] + 1) % 96)
        return DraftTree(tokens, tree.parents, tree.scores)

    patch.setattr(OrtDraftSession, "propose", wrong)


def keep_too_much(patch: pytest.MonkeyPatch) -> None:
    """Keep one row more than the path has."""
    commit = CachedSession.commit

    def wrong(session: Any, path: Any, slot: int = 0) -> None:
        commit(session, path, slot)
        if list(path) != list(range(len(path))) and session.room(slot):
            session._lengths[slot] += 1

    patch.setattr(CachedSession, "commit", wrong)


FAULTS: dict[str, tuple[Plant, set[str]]] = {
    "a verifier accepts the first child": (accept_the_first, {GREEDY, SAMPLED, DISTRIBUTION}),
    "a verifier accepts nothing": (accept_nothing, {ACCEPTED}),
    "a verifier sees one child": (accept_no_second_child, {ACCEPTED}),
    "a bonus is dropped": (drop_the_bonus, {GREEDY, SAMPLED}),
    "a node sees its sibling": (bit(2, 1), {PATHS}),
    "a node does not see its parent": (bit(3, 1), {PATHS}),
    "a node does not see the root": (bit(7, 0), {PATHS}),
    "a row is moved too far": (move(to_the_next_row), {COMMIT}),
    "a row is not moved": (move(all_but_the_last), {COMMIT}),
    "a row is not moved in a head": (move(in_one_head), {COMMIT}),
    "a row too many is kept": (keep_too_much, {COMMIT}),
    "positions are one too deep": (depths(one_deeper), {STEPS}),
    "positions are places": (depths(by_place), {PATHS}),
    "positions forget the past": (forget_the_past, {STEPS}),
    "a choice is another row's": (chosen_one_row_early, {NEXT}),
    "random numbers go by rounds": (count_rounds, {ACCEPTED}),
    "positions share random numbers": (one_number_for_a_path, {DISTRIBUTION}),
    "random numbers are all the same": (the_same_number, {DISTRIBUTION}),
    "a draw leans": (lean, {DISTRIBUTION}),
    "temperature comes last": (order("top_k", "top_p", "min_p", "temperature"), {FILTERS}),
    "top-p before top-k": (order("temperature", "top_p", "top_k", "min_p"), {FILTERS}),
    "min-p before top-p": (order("temperature", "top_k", "min_p", "top_p"), {FILTERS}),
    "min-p is forgotten": (order("temperature", "top_k", "top_p"), {FILTERS}),
    "trees are stale": (stale_trees, {GREEDY, SAMPLED}),
    "features are the tree's first rows": (stale_features, {AFRESH}),
    "the drafter misses rows": (unread_rows, {AFRESH}),
    "embeddings are the neighbours'": (another_embedding, {DRAFTS}),
    "drafted tokens are misnamed": (misnamed, {DRAFTS}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_name(
    fault: str, bundle: Bundle, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, named = FAULTS[fault]
    plant(monkeypatch)
    assert broken(bundle, reference) >= named


@pytest.fixture(scope="module")
def static_target(tiny_folder: Any, target_graph: Any) -> Iterator[OrtTargetSession]:
    """Standard operators, which read the mask above its diagonal too; the others' is causal."""
    from poss_export.targets.checkpoint import open_target

    contract = target_contract(open_target(str(tiny_folder("llama"))).config, "fp32")
    with OrtTargetSession(target_graph("llama", "static"), contract, 48, OrtOptions(threads=1)) as session:
        yield session


EVERY_BIT = [(row, column) for row in range(8) for column in range(8) if row != column]
ONE_OF_EACH_KIND = {(2, 1), (1, 2), (3, 1), (7, 0)}


@pytest.mark.parametrize(
    "place",
    [
        place if place in ONE_OF_EACH_KIND else pytest.param(place, marks=pytest.mark.slow)
        for place in EVERY_BIT
    ],
)
def test_no_bit_of_a_mask_may_be_wrong(
    place: tuple[int, int], static_target: OrtTargetSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(0, 96, laws.TOKENS)
    assert laws.tree_equals_its_paths(static_target, tokens) <= TOLERANCE["fp32"]
    bit(*place)(monkeypatch)
    assert laws.tree_equals_its_paths(static_target, tokens) > 10 * TOLERANCE["fp32"]

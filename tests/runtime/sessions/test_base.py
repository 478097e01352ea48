"""What sessions ask of a graph: which output its drafter reads, and how it reads tokens."""

import numpy as np

from poss_export.config import TargetConfig, TreeShape
from poss_export.contract import draft_contract, target_contract
from poss_export.runtime.sessions.base import next_token_input
from tests.fixtures.random_drafter import random_drafter

TABLE = np.arange(12).reshape(6, 2)
TOKENS = np.array([4, 1])


def test_a_drafter_reads_rows_of_the_targets_table() -> None:
    contract = draft_contract(random_drafter().config, TreeShape(2, 2, 4), "fp32")
    name, values = next_token_input(contract, TABLE, TOKENS)
    assert (name, values.tolist()) == ("next_token_embeddings", [[8, 9], [2, 3]])


def test_a_drafter_with_a_table_of_its_own_reads_ids() -> None:
    own = random_drafter(fusion="taps", taps=(1, 2), own_embeddings=True)
    contract = draft_contract(own.config, TreeShape(2, 2, 4), "fp32")
    name, values = next_token_input(contract, TABLE, TOKENS)
    assert (name, values.tolist()) == ("next_tokens", [4, 1])
    assert [spec.shape for spec in contract.inputs[:2]] == [("batch", "rows"), ("batch", "rows", 64)]


def test_a_target_gives_features_or_taps() -> None:
    config = TargetConfig("llama", 96, 32, 40, 4, 4, 2, 16, 1e-5, 128)
    plain, tapped = target_contract(config, "fp16"), target_contract(config, "fp16", (1, 3))
    assert (plain.feature_output, tapped.feature_output) == ("features", "taps")
    shapes = {spec.name: spec.shape for spec in tapped.outputs if not spec.is_cache}
    assert shapes["taps"] == ("batch", "seq", 64)
    assert "features" not in shapes

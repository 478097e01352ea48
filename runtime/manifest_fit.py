"""Whether parts of a manifest, each right by itself, contradict each other."""

from poss_export.contract import FLOAT
from poss_export.errors import BundleError
from poss_export.manifest import DRAFT_GRAPH, DRAFT_IDS, TARGET_GRAPH, TOKENIZER, Manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise BundleError where parts of the manifest contradict each other."""
    config, table = manifest.target.config, manifest.target.embedding
    wanted = {TARGET_GRAPH, TOKENIZER, table.file} | ({DRAFT_GRAPH, DRAFT_IDS} if manifest.drafter else set())
    facts: list[tuple[str, object, object]] = [
        ("files", sorted(wanted & manifest.files.keys()), sorted(wanted)),
        ("embedding shape", table.shape, (config.vocab_size, config.hidden_size)),
        ("embedding dtype", table.dtype, FLOAT[manifest.precision]),
    ]
    if manifest.drafter is not None:
        drafter = manifest.drafter.config
        facts.append(("drafter hidden size", drafter.read_size, config.hidden_size))
        facts.append(("drafter vocabulary", drafter.vocab_size, config.vocab_size))
    for name, have, want in facts:
        if have != want:
            raise BundleError(
                f"{name} in the manifest: {have}, but the target needs {want}; rebuild the bundle"
            )

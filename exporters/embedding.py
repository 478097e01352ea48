"""Where the target's embedding table lies in the files of an exported graph."""

from pathlib import Path

import onnx

from poss_export.manifest import EmbeddingTable


def find_embedding(path: Path) -> EmbeddingTable:
    """Find the table in the weights of the target graph at `path`."""
    graph = onnx.load(path, load_external_data=False).graph
    name = next(
        node.input[0] for node in graph.node if node.op_type == "Gather" and "input_ids" in node.input
    )
    table = next(tensor for tensor in graph.initializer if tensor.name == name)
    where = {entry.key: entry.value for entry in table.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(table.data_type).name
    vocab, hidden = table.dims
    return EmbeddingTable(where["location"], int(where.get("offset", 0)), dtype, (vocab, hidden))

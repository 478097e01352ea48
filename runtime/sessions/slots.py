"""Rewrites a target graph of one sequence for several: their tokens lie behind each other in one row.

Everything but attention works on rows and does not know whose they are. Attention gets a node for each slot,
because GroupQueryAttention takes one sequence where several tokens follow cached ones. What a node needs
besides its rows, and comes from inputs of its sequence, is computed for each slot from inputs of that name
and the slot's number: `tree_mask.3`, `past_key_values.0.key.3`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poss_export.contract import PAST, PRESENT, GraphContract, TensorSpec
from poss_export.errors import BackendError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_PER_SLOT = ("position_ids", "tree_mask", "past_length")  # beside the caches
_ATTENTION = "GroupQueryAttention"
_ROWS = "rows_of_slots"


def slot_name(name: str, slot: int) -> str:
    """Return what an input or output of a sequence is called in a graph of several."""
    return f"{name}.{slot}"


def for_slots(contract: GraphContract, slots: int) -> GraphContract:
    """Return the contract of a target graph that was rewritten for so many slots.

    In it `seq` counts the rows of all slots; those of a slot are `seq.0`, `seq.1`, ...
    """

    def spread(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        made = []
        for spec in specs:
            if not _per_slot(spec.name):
                made.append(spec)
                continue
            for slot in range(slots):
                shape = tuple(slot_name(dim, slot) if dim == "seq" else dim for dim in spec.shape)
                made.append(TensorSpec(slot_name(spec.name, slot), spec.dtype, shape))
        return tuple(made)

    return GraphContract(spread(contract.inputs), spread(contract.outputs))


def load_for_slots(graph: Path, slots: int) -> bytes:
    """Return the target graph of a file rewritten for so many slots, its weights left where they are.

    Raises:
        BackendError: onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            f"answers in several slots need onnx, which cannot be imported ({error}): "
            "pip install 'poss-export[server]', or answer in one slot",
            options=("slots",),
        ) from error
    model = onnx.load(graph, load_external_data=False)
    rewrite(model, slots)
    serialised: bytes = model.SerializeToString()
    return serialised


def rewrite(model: "ModelProto", slots: int) -> None:
    """Change a target graph of the `shared` form, in place, into one of `slots` sequences."""
    _Rewriting(model.graph, slots).run()


class _Rewriting:
    """A graph on its way from one sequence to several."""

    def __init__(self, graph: "GraphProto", slots: int) -> None:
        self.graph, self.slots = graph, slots
        self.maker = {name: node for node in graph.node for name in node.output}
        self.nodes: list[NodeProto] = []  # new ones, in the order of their work
        self.renamed: list[dict[str, str]] = [{} for _ in range(slots)]  # values, by slot

    def run(self) -> None:
        """Rewrite all nodes, then inputs and outputs."""
        self._count_rows()
        for node in self.graph.node:
            if node.op_type == _ATTENTION:
                self._attention(node)
            else:
                self.nodes.append(node)
        wanted = [output.name for output in self.graph.output if not _per_slot(output.name)]
        needed = _reachable(self.nodes, wanted)
        nodes = [node for node in self.nodes if needed.intersection(node.output)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._spread(self.graph.input)
        self._spread(self.graph.output)

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def _count_rows(self) -> None:
        """Compute how many rows each slot has, from the shapes of its inputs."""
        lengths = [slot_name(_ROWS, slot) for slot in range(self.slots)]
        for slot, length in enumerate(lengths):
            self._add("Shape", [slot_name("position_ids", slot)], [length], start=1, end=2)
        self._add("Concat", lengths, [_ROWS], axis=0)

    def _attention(self, node: "NodeProto") -> None:
        """Replace an attention node by one for each slot, between a split of the rows and a concatenation."""
        rows = self._split_rows(node)
        for slot in range(self.slots):
            inputs = [*rows[slot], *(self._of_slot(name, slot) for name in node.input[3:])]
            self._copy(node, slot, inputs)
        mixed = [slot_name(node.output[0], slot) for slot in range(self.slots)]
        self._add("Concat", mixed, [node.output[0]], axis=1)

    def _split_rows(self, node: "NodeProto") -> list[list[str]]:
        """Return query, key and value of each slot; those of one product stay one, as the operator may."""
        wanted, missing = list(node.input[:3]), list[str]()
        product = self.maker.get(wanted[0])
        if not wanted[1]:
            wanted, missing = wanted[:1], ["", ""]
        elif product is not None and product.op_type == "Split" and list(product.output) == wanted:
            wanted, missing = [product.input[0]], ["", ""]  # a graph of an earlier build
        for name in wanted:
            self._add("Split", [name, _ROWS], [slot_name(name, slot) for slot in range(self.slots)], axis=1)
        return [[*(slot_name(name, slot) for name in wanted), *missing] for slot in range(self.slots)]

    def _of_slot(self, name: str, slot: int) -> str:
        """Return a value that a slot's attention reads, computed anew where it depends on the sequence."""
        if _per_slot(name):
            return slot_name(name, slot)
        if name in self.renamed[slot]:
            return self.renamed[slot][name]
        maker = self.maker.get(name)
        if maker is None:
            return name  # a weight
        inputs = [self._of_slot(source, slot) for source in maker.input]
        if inputs == list(maker.input):
            return name  # a constant
        self._copy(maker, slot, inputs)
        self.renamed[slot].update({output: slot_name(output, slot) for output in maker.output})
        return self.renamed[slot][name]

    def _copy(self, node: "NodeProto", slot: int, inputs: list[str]) -> None:
        """Add a node's copy for a slot, with other inputs."""
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = slot_name(node.name, slot)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(slot_name(output, slot) for output in node.output)
        self.nodes.append(copy)

    def _spread(self, values: Any) -> None:  # a list in a protocol buffer
        kept = list(values)
        del values[:]
        for value in kept:
            if not _per_slot(value.name):
                values.append(value)
                continue
            for slot in range(self.slots):
                copy = type(value)()
                copy.CopyFrom(value)
                copy.name = slot_name(value.name, slot)
                for dim in copy.type.tensor_type.shape.dim:
                    if dim.dim_param == "seq":
                        dim.dim_param = slot_name("seq", slot)
                values.append(copy)


def _per_slot(name: str) -> bool:
    return name in _PER_SLOT or name.startswith((f"{PAST}.", f"{PRESENT}."))


def _reachable(nodes: "list[NodeProto]", wanted: list[str]) -> set[str]:
    """Return the values that wanted ones are made of, and what attention writes."""
    maker = {name: node for node in nodes for name in node.output}
    found, todo = set[str](), list(wanted)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        if (node := maker.get(name)) is not None:
            todo += node.input
    return found

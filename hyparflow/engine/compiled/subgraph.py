"""Parts of a traced TensorFlow graph as compiled functions of their own.

Relies on the captures and effects that a traced function's graph lists, and on graph definitions
that can be imported again. Gain: that of `hyparflow.engine.compiled.split_function`, which uses it
to cut. Seen to work on TensorFlow 2.21 with Keras 3.15. Without it nothing can be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.direct_call import DirectCall, flat_call, packed_call

__all__ = ["GraphParts"]


class GraphParts:
    """A traced function that can be run part by part.

    Args:
        traced: a concrete function.
        jit_compile: whether XLA compiles the parts.

    Attributes:
        graph: the graph that was traced.
        operations: all operations, in the order of tracing.
        effects: the operations that must run for their side effects.
        functions: definitions of the functions that operations call, by name.
        captured: name of a placeholder -> the captured variable or tensor that it stands for.
    """

    def __init__(self, traced: Any, jit_compile: bool) -> None:
        # Kept, because it holds Python functions that its operations call.
        self._traced = traced
        self._jit_compile = jit_compile or None
        self.graph = traced.graph
        self._definition = traced.graph.as_graph_def()
        self.operations = traced.graph.get_operations()
        self.effects = traced.graph.control_outputs
        self.functions = {f.signature.name: f for f in self._definition.library.function}
        self.captured = {inner.name: outer for outer, inner in traced.graph.captures}

    def needed(self, start: Iterable[Any], front: Collection[Any]) -> list[Any]:
        """The outputs of operations in `front` that other operations need, to compute `start`."""
        found: dict[Any, Any] = {}
        seen: set[Any] = set()
        stack = [operation for operation in start if operation not in front]
        while stack:
            operation = stack.pop()
            if operation in seen:
                continue
            seen.add(operation)
            for x in operation.inputs:
                if x.op not in front:
                    stack.append(x.op)
                elif x.name not in self.captured:
                    found[x.ref()] = x
            stack += [op for op in operation.control_inputs if op not in front]
        return list(found.values())

    def upstream(self, start: Iterable[Any], stop: Collection[Any] = ()) -> set[Any]:
        """The operations that `start` needs; the search stops at those in `stop`."""
        found: set[Any] = set()
        stack = list(start)
        while stack:
            operation = stack.pop()
            if operation not in found and operation not in stop:
                found.add(operation)
                stack += [x.op for x in operation.inputs] + list(operation.control_inputs)
        return found

    def compile(
        self,
        given: Sequence[Any],
        wanted: Sequence[Any],
        operations: Collection[Any],
        finish: Callable[[list[Any]], Any] | None = None,
    ) -> DirectCall:
        """A compiled function that computes the tensors `wanted` from the tensors `given`.

        Args:
            given, wanted: tensors of the graph.
            operations: the operations that it may run.
            finish: a function of the list of tensors, whose value is returned; without it the list
                itself is.
        """
        names = {operation.name for operation in operations}
        arguments = [x.name for x in given]
        outside = {_operation(name) for name in self.captured}
        outside |= {x.op.name for x in given if x.op.type == "Placeholder"}
        definition = self._define(names - outside)
        used = {_tensor(source) for node in definition.node for source in node.input}
        captured = {n: x for n, x in self.captured.items() if n in used}
        missing = [x.name for x in wanted if x.name not in arguments]

        def run(*tensors: Any) -> Any:
            known = dict(zip(arguments, tensors, strict=True))
            graph = tf.compat.v1.get_default_graph()
            feeds = {name: x for name, x in known.items() if name in used}
            feeds |= {name: graph.capture(x) for name, x in captured.items()}
            made = tf.graph_util.import_graph_def(
                definition, input_map=feeds, return_elements=missing, name=""
            )
            known |= dict(zip(missing, made or [], strict=True))
            results = [known[x.name] for x in wanted]
            return results if finish is None else finish(results)

        types = [tf.TensorSpec(x.shape, x.dtype) for x in given]
        function = tf.function(run, autograph=False, jit_compile=self._jit_compile)
        concrete = function.get_concrete_function(*types)
        return flat_call(concrete) if finish is None else packed_call(concrete)

    def _define(self, names: set[str]) -> Any:
        """The definition of the operations of these names."""
        part = tf.compat.v1.GraphDef()
        part.versions.CopyFrom(self._definition.versions)
        part.library.CopyFrom(self._definition.library)
        for node in self._definition.node:
            if node.name in names:
                copy = part.node.add()
                copy.CopyFrom(node)
                copy.attr.pop("_class", None)  # names operations that may be in another part
                # Operations that ran in the other call need not be waited for.
                sources = [s for s in node.input if s[0] != "^" or s[1:] in names]
                del copy.input[:]
                copy.input.extend(sources)
        return part


def _tensor(source: str) -> str:
    """The full name of a tensor, from an operation's input."""
    return source if ":" in source or source[0] == "^" else f"{source}:0"


def _operation(name: str) -> str:
    """The operation of a tensor or a control input, by name."""
    return name.lstrip("^").partition(":")[0]

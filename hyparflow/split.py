"""A computation that is traced as one and run as two: a forward, and what follows it later.

TensorFlow compiles a forward and its backward as two calls only through an eager tape. Traced as
one graph and cut here they cost less: the backward can add up gradients itself, and what goes from
one to the other is chosen. Of a tensor of which the backward needs only the shape, the shape is
kept; what a weight alone gives is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Split"]

_SHAPES = ("Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs")
_VIEWS = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze")  # cheap to make again
_WHOLE = (tf.int32, tf.int64, tf.bool)


class Split:
    """Two functions of which the second continues the first.

    Args:
        first: (arguments) -> (outputs, state); the state goes to `second`.
        second: (state, further arguments) -> results.
        arguments: types of the arguments, nested; `tf.TensorSpec` where there are tensors.
        further: (outputs) -> the further arguments, nested; tensors like those to come.
        constant: variables that nothing but the optimizer changes.
        finishes: what may be done with the results inside the second call; its return value is
            returned.
        jit_compile: whether XLA compiles both.
    """

    def __init__(
        self,
        first: Callable[..., tuple[Any, Any]],
        second: Callable[..., Any],
        arguments: Any,
        further: Callable[[Any], Any] = lambda outputs: (),
        constant: Sequence[Any] = (),
        finishes: Sequence[Callable[[Any], Any]] = (lambda results: results,),
        jit_compile: bool = False,
    ) -> None:
        self._jit_compile = jit_compile or None
        self._finishes = finishes
        self._backwards: dict[int, Callable[..., Any]] = {}
        self._trace(first, second, arguments, further)
        self._kept = self._what_is_kept({id(v.handle) for v in constant})
        self._forward = self._compile(
            self._given,
            [*self._outputs, *self._kept],
            self._upstream([x.op for x in [*self._outputs, *self._kept]] + self._effects(True)),
        )

    # --- what users call ---

    def forward(self, arguments: Any) -> tuple[Any, list[Any]]:
        """Run the first function: its outputs, and what `backward` needs."""
        made = self._forward(*_tensors(arguments))
        count = len(self._outputs)
        return _pack(self._outputs_like, made[:count]), made[count:]

    def backward(self, kept: list[Any], further: Any = (), finish: int = 0) -> Any:
        """Run the second function, and one of `finishes` on its results."""
        self.prepare(finish)
        return self._backwards[finish](*kept, *_tensors(further))

    def prepare(self, finish: int) -> None:
        """Compile the second function with one of `finishes`."""
        if finish not in self._backwards:
            self._backwards[finish] = self._compile_backward(self._finishes[finish])

    @property
    def kept(self) -> list[Any]:
        """The symbolic tensors that go from the first to the second."""
        return self._kept

    # --- tracing ---

    def _trace(self, first: Any, second: Any, arguments: Any, further: Any) -> None:
        self._boundary = 0

        def both(*arguments: Any) -> list[Any]:
            outputs, state = first(*arguments)
            self._boundary = len(tf.compat.v1.get_default_graph().get_operations())
            more = tf.nest.map_structure(_placeholder, further(outputs))
            results = second(state, *more)
            self._outputs_like, self._results_like = outputs, results
            self._further = _tensors(more)
            return _tensors((outputs, results))

        # Kept, because it holds Python functions that its operations call.
        self._traced = tf.function(both, autograph=False).get_concrete_function(*arguments)
        graph = self._traced.graph
        self._captured = {inner.name: outer for outer, inner in graph.captures}
        self._given = [x for x in self._traced.inputs if x.name not in self._captured]
        self._outputs, self._results = _tensors(self._outputs_like), _tensors(self._results_like)
        self._in_front = self._first_part(graph.get_operations())
        self._definition = graph.as_graph_def()

    def _first_part(self, operations: list[Any]) -> set[Any]:
        """The operations of the first function, and those after it that need only shapes."""
        front = set(operations[: self._boundary])
        small: set[Any] = set()
        for operation in operations[self._boundary :]:
            inputs = [x.op for x in operation.inputs]
            if operation.type in _SHAPES:
                moves = all(op in front or op.type == "Const" for op in inputs)
            else:
                whole = all(x.dtype in _WHOLE for x in operation.outputs)
                moves = whole and any(op in small for op in inputs)
                moves = moves and all(op in small or op.type == "Const" for op in inputs)
            if moves and operation.outputs:
                small.add(operation)
                front.add(operation)
        return front

    # --- cutting ---

    def _what_is_kept(self, constant: Collection[int]) -> list[Any]:
        """The tensors of the first function that the second needs."""
        self._again = self._cheap_again(constant)
        kept = {x.ref(): x for x in self._results if x.op in self._in_front}
        stack = [x.op for x in self._results] + self._effects(False)
        seen: set[Any] = set()
        while stack:
            operation = stack.pop()
            if operation in seen or (operation in self._in_front and operation not in self._again):
                continue
            seen.add(operation)
            for x in operation.inputs:
                is_captured = x.name in self._captured
                if x.op in self._in_front and x.op not in self._again and not is_captured:
                    kept[x.ref()] = x
                else:
                    stack.append(x.op)
            stack += operation.control_inputs
        self._in_front = self._in_front - self._again
        return list(kept.values())

    def _cheap_again(self, constant: Collection[int]) -> set[Any]:
        """Operations of the first function that the second does better again than be given."""
        handles = {name for name, outer in self._captured.items() if id(outer) in constant}
        changed = {
            x.name
            for operation in self._in_front
            if operation.type != "ReadVariableOp"
            for x in operation.inputs
            if x.dtype == tf.resource
        }
        again: set[Any] = set()
        for operation in self._traced.graph.get_operations():
            inputs = list(operation.inputs)
            reads = operation.type == "ReadVariableOp" and inputs[0].name in handles - changed
            view = operation.type in _VIEWS and inputs[0].op in again
            view = view and all(x.op in again or x.op.type == "Const" for x in inputs)
            if operation in self._in_front and (reads or view or operation.type == "Const"):
                again.add(operation)
        return again

    def _effects(self, front: bool) -> list[Any]:
        """Operations that must run for what they do."""
        effects = self._traced.graph.control_outputs
        return [op for op in effects if (op in self._in_front) is front]

    def _upstream(self, start: Iterable[Any], stop: Collection[Any] = ()) -> set[str]:
        """Names of the operations that `start` needs, without those to `stop` at."""
        names: set[str] = set()
        stack = list(start)
        while stack:
            operation = stack.pop()
            if operation.name not in names and operation not in stop:
                names.add(operation.name)
                stack += [x.op for x in operation.inputs] + list(operation.control_inputs)
        return names

    def _compile(
        self,
        given: Sequence[Any],
        wanted: Sequence[Any],
        names: set[str],
        finish: Callable[[list[Any]], Any] = lambda results: results,
    ) -> Callable[..., Any]:
        """A function of tensors `given` that makes those `wanted` by the operations `names`."""
        arguments = [x.name for x in given]
        outside = {_operation(name) for name in self._captured}
        outside |= {x.op.name for x in given if x.op.type == "Placeholder"}
        definition = self._part(names - outside)
        used = {_operation(source) for node in definition.node for source in node.input}
        captured = {n: x for n, x in self._captured.items() if _operation(n) in used}
        missing = [x.name for x in wanted if x.name not in arguments]

        def run(*tensors: Any) -> Any:
            known = dict(zip(arguments, tensors, strict=True))
            graph = tf.compat.v1.get_default_graph()
            feeds = {name: x for name, x in known.items() if _operation(name) in used}
            feeds |= {name: graph.capture(x) for name, x in captured.items()}
            made = tf.graph_util.import_graph_def(
                definition, input_map=feeds, return_elements=missing, name=""
            )
            known |= dict(zip(missing, made or [], strict=True))
            return finish([known[x.name] for x in wanted])

        types = [tf.TensorSpec(x.shape, x.dtype) for x in given]
        function = tf.function(run, autograph=False, jit_compile=self._jit_compile)
        return function.get_concrete_function(*types)

    def _compile_backward(self, finish: Callable[[Any], Any]) -> Callable[..., Any]:
        return self._compile(
            [*self._kept, *self._further],
            self._results,
            self._upstream([x.op for x in self._results] + self._effects(False), self._in_front),
            lambda results: finish(_pack(self._results_like, results)),
        )

    def _part(self, names: set[str]) -> Any:
        """The definition of these operations."""
        part = tf.compat.v1.GraphDef()
        part.versions.CopyFrom(self._definition.versions)
        part.library.CopyFrom(self._definition.library)
        for node in self._definition.node:
            if node.name in names:
                copy = part.node.add()
                copy.CopyFrom(node)
                copy.attr.pop("_class", None)  # names operations that may be in the other part
                # What ran in the other call need not be waited for.
                sources = [s for s in node.input if s[0] != "^" or s[1:] in names]
                del copy.input[:]
                copy.input.extend(sources)
        return part


def _placeholder(like: Any) -> Any:
    """Stands in for an argument that comes later."""
    if not isinstance(like, tf.Tensor | tf.TensorSpec):
        return like
    return tf.compat.v1.placeholder(like.dtype, like.shape)


def _operation(name: str) -> str:
    """The operation of a tensor or a control input, by name."""
    return name.lstrip("^").partition(":")[0]


def _tensors(structure: Any) -> list[Any]:
    """The tensors in `structure`, those of composite ones too."""
    flat = tf.nest.flatten(structure, expand_composites=True)
    return [x for x in flat if isinstance(x, tf.Tensor | tf.TensorSpec)]


def _pack(structure: Any, tensors: Sequence[Any]) -> Any:
    """`structure` with these in place of its tensors."""
    following = iter(tensors)
    flat = [
        next(following) if isinstance(x, tf.Tensor) else x
        for x in tf.nest.flatten(structure, expand_composites=True)
    ]
    return tf.nest.pack_sequence_as(structure, flat, expand_composites=True)

"""A stage whose sequences are divided into chunks and over shards: what the engine calls."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.accumulator import Accumulator
from hyparflow.engine.gradients.common_lookups import Lookups
from hyparflow.engine.gradients.microbatch_sum import GradientSum
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.chunked_attention import ChunkedAttention
from hyparflow.engine.sequence.chunks import ChunkCosts, tile_of
from hyparflow.engine.sequence.cores_found import CoresFound
from hyparflow.engine.sequence.exchange import ShardExchange
from hyparflow.engine.sequence.kept_forwards import KeptForwards
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.engine.sequence.shared_blocks import SharedBlocks
from hyparflow.engine.sequence.stage_run import StageRun
from hyparflow.engine.sequence.stage_trace import CutStage, StageTrace
from hyparflow.engine.sequence.store import Store
from hyparflow.engine.sequence.token_inputs import TokenInputs
from hyparflow.engine.stages.saved import Saved
from hyparflow.pipeline.token_layout import TokenLayout

__all__ = ["SequenceStage"]

_FEW_LENGTHS = 4  # of sequences: for so many, kernels are compiled that are for one size each


@dataclass
class _SavedRun(Saved):
    """A micro-batch between its forward and its backward."""

    run: Any = None


class SequenceStage:
    """The calls of `hyparflow.engine.stages.stage.Stage`, chunk by chunk.

    Attributes:
        num_chunks: of a sequence.
        accumulator: the sums of dense gradients, which backwards add up.

    Args:
        trace: what is traced.
        trainable: the variables that it trains, in the order of the trace's weights.
        tables: positions of weights of which some rows are looked up, and whose gradient Keras
            takes of all rows.
        num_chunks: of a sequence; "auto" until `num_chunks` is set.
        exchange: among the shards.
        store: keeps what waits for a backward.
        blocks: of attention, which the stages of a rank share.
        find: (length of sequences) -> what attention layers compute.
        is_first: whether it takes the user's inputs.
        keeps: whether forwards keep what their backwards need, as far as memory is there.
    """

    def __init__(
        self,
        trace: StageTrace,
        trainable: Sequence[Any],
        tables: Collection[int],
        num_chunks: int | str,
        exchange: ShardExchange,
        store: Store,
        blocks: SharedBlocks,
        find: Callable[[int], CoresFound],
        is_first: bool,
        keeps: bool,
    ) -> None:
        self._trace, self.num_chunks, self._is_first = trace, num_chunks, is_first
        self._exchange, self._store, self._find = exchange, store, find
        self._blocks, self._layers = blocks, dict[Any, ChunkedAttention]()
        self._keeps, self._kept = keeps, KeptForwards()
        largest = [n for n, v in enumerate(trainable) if v.overwrite_with_gradient]
        self.accumulator = Accumulator(trace.weights, largest, tables=tables)
        self._tables = list(tables)
        self._cuts: dict[Any, tuple[CutStage, list[ChunkedAttention]]] = {}
        self._costs_of: dict[CutStage, ChunkCosts] = {}
        self._numbers = itertools.count()
        self._lengths: set[int] = set()
        self.begin(several=False)

    @property
    def rewritten(self) -> Counter[str]:
        """How often which faster kernel was put in; empty before it is compiled."""
        return next((cut.rewritten for cut, _ in self._cuts.values()), Counter[str]())

    @property
    def counts(self) -> SequenceCounts:
        """What was exchanged and kept so far."""
        kept = self._store.counts
        return SequenceCounts(
            exchanges=self._exchange.calls,
            bytes_sent=self._exchange.bytes_sent,
            bytes_kept=kept.bytes_in,
            bytes_got=kept.bytes_out,
            stalls=kept.stalls,
            peak=kept.peak,
        )

    def begin(self, several: bool) -> None:
        """Begin a training step."""
        self._total = GradientSum(Lookups)
        self._added: dict[int, None] = {}
        self._store.clear()
        self._kept.clear()
        self.accumulator.reset()

    def require(self, length: int) -> None:
        """Check that sequences of this length may be divided as asked for.

        Raises:
            ValueError: naming what stands against it.
        """
        TokenLayout(length, self._count, self._exchange.size)
        found = self._find(length)
        found.require_tried(length)
        for core in found.cores.values():
            core.require_shards(self._exchange.size)

    def costs(self, inputs: Any, rest: Any) -> ChunkCosts | None:
        """What a chunk needs in training; None of a stage that takes what another one makes.

        Args:
            inputs, rest: a micro-batch with its share, or labels.
        """
        if not self._is_first:
            return None
        given = TokenInputs(inputs, rest, self._layout(inputs), 0, is_local=False)
        return self._costs(*self._cut(given, training=True, has_head=isinstance(rest, Labels)))

    def _costs(self, cut: CutStage, attention: Sequence[ChunkedAttention]) -> ChunkCosts:
        if cut not in self._costs_of:
            sections = cut.sections.sizes(self._tables)
            heads = [layer.sizes for layer in attention]
            is_loss = cut.sections.is_loss
            self._costs_of[cut] = ChunkCosts.of(sections, heads, self._keeps, is_loss)
        return self._costs_of[cut]

    def prepare(self, inputs: Any, rest: Any, kinds: Collection[str]) -> None:
        """Nothing: the length of sequences is not known before they come."""

    def gradients(self) -> GradientSum:
        """The gradients of the weights, summed over the micro-batches of the step."""
        if self._total.values is not None:
            self.accumulator.fill(self._total.values, self._added)
        return self._total

    # --- training ---

    def forward(self, inputs: Any, share: Any) -> Saved:
        """Forward of a stage that is not the last; see `Stage.forward`."""
        run, cut = self._run(inputs, share, training=True, has_head=False)
        run.forward(keeps=True)
        return _SavedRun(_outputs(run.last(keeps=True), cut), run=run)

    def forward_loss(self, inputs: Any, labels: Labels) -> Saved:
        """Forward of the last stage, up to its last attention; see `Stage.forward_loss`."""
        run, _ = self._run(inputs, labels, training=True, has_head=True)
        run.forward(keeps=True)
        return _SavedRun([], run=run, loss=None)

    def backward(
        self, saved: Saved, output_gradients: Sequence[Any] = (), seed: Any = None
    ) -> list[Any]:
        """Backward of a micro-batch; see `Stage.backward`."""
        run: StageRun = saved.run  # type: ignore[attr-defined]
        if seed is None:
            run.last_backward(self._add_up, self._add)
        else:
            known = zip(self._trace.gradient_outputs, output_gradients, strict=True)
            gradients = [tf.zeros_like(saved.outputs[p]) if g is None else g for p, g in known]
            run.outputs_backward(gradients, self._add_up, self._add)
        return run.backward(self._add_up, self._add)

    def forward_backward(self, inputs: Any, labels: Labels) -> tuple[list[Any], Any]:
        """Forward and backward of the last stage; see `Stage.forward_backward`."""
        return self.backward(self.forward_loss(inputs, labels)), None

    def _add_up(self, of_weights: list[Any]) -> Any:
        """To be traced: add dense gradients to those of the chunks before."""
        return self.accumulator.add(of_weights)

    def _add(self, finished: Any) -> None:
        of_weights, added = finished
        self._added.update(added)
        self._total.add(of_weights)

    # --- without training ---

    def infer(self, inputs: Any, share: Any) -> tuple[list[Any], Any]:
        """Outputs without training; see `Stage.infer`."""
        run, cut = self._run(inputs, share, training=False, has_head=False)
        run.forward(keeps=False)
        return _outputs(run.last(keeps=False), cut), None

    def infer_loss(self, inputs: Any, labels: Labels) -> Any:
        """Loss and metrics without training; see `Stage.infer_loss`."""
        run, _ = self._run(inputs, labels, training=False, has_head=True)
        run.forward(keeps=False)
        run.last(keeps=False, tiled=True)

    # --- a micro-batch ---

    def _run(
        self, inputs: Any, rest: Any, training: bool, has_head: bool
    ) -> tuple[StageRun, CutStage]:
        layout = self._layout(inputs)
        shard = self._exchange.rank
        given = TokenInputs(inputs, rest, layout, shard, is_local=not self._is_first)
        cut, attention = self._cut(given, training, has_head)
        run = StageRun(
            number=next(self._numbers),
            cut=cut,
            attention=attention,
            inputs=given,
            store=self._store,
            kept=self._kept,
            exchange=self._exchange,
            tile=tile_of(cut.sections.largest_of_last, _rows(inputs)),
            at_padding=self._find(layout.length).at_padding,
        )
        if training and self._keeps:
            own = [stop - start for start, stop in layout.pieces(shard)]
            rows, costs = _rows(inputs), self._costs(cut, attention)
            self._kept.choose(run.sizes_kept(rows), costs.most_kept(rows, max(own)))
        return run, cut

    def _layout(self, inputs: Any) -> TokenLayout:
        lengths = {int(x.shape[1]) for x in tf.nest.flatten(inputs) if x is not None}
        if len(lengths) > 1:
            raise ValueError(
                "Inputs of a model whose sequences are divided must be equally long. Received: "
                f"inputs of {sorted(lengths)} positions. Leave `num_sequence_shards` and "
                "`num_sequence_chunks` out."
            )
        length = lengths.pop()
        shards = self._exchange.size
        if not self._is_first:  # of this shard alone
            length = self._exchange.total(length)
        return TokenLayout(length, self._count, shards)

    @property
    def _count(self) -> int:
        return self.num_chunks if isinstance(self.num_chunks, int) else 1

    def _cut(
        self, given: TokenInputs, training: bool, has_head: bool
    ) -> tuple[CutStage, list[ChunkedAttention]]:
        types = _types(given)
        found = self._find(given.layout.length)
        found.require_tried(given.layout.length)
        self._lengths.add(given.layout.length)
        few = len(self._lengths) <= _FEW_LENGTHS
        form = str(tf.nest.map_structure(str, types))
        key = training, has_head, form, few, tuple(found.cores.values())
        if key not in self._cuts:
            cut = CutStage(self._trace, found.cores, types, training, has_head, few)
            self._cuts[key] = cut, [self._layer(*each) for each in cut.attention]
        return self._cuts[key]

    def _layer(self, core: AttentionCore, sizes: tuple[int, int], dtype: Any) -> ChunkedAttention:
        """What is compiled for an attention layer, and for others that compute the same."""
        kind = core.unnamed, sizes, dtype
        if kind not in self._layers:
            self._layers[kind] = ChunkedAttention(*kind, self._exchange, self._blocks)
        return self._layers[kind]


def _rows(inputs: Any) -> int:
    return int(next(x.shape[0] for x in tf.nest.flatten(inputs) if x is not None))


def _types(given: TokenInputs) -> Any:
    """The types of (position, inputs, share or labels), for any number of rows and positions."""

    def any_part(x: Any) -> Any:
        if x is None:
            return None
        shape = [None if axis < 2 else n for axis, n in enumerate(x.shape.as_list())]
        return tf.TensorSpec(shape, x.dtype)

    values, rest = (tf.nest.map_structure(any_part, x) for x in (given.values, given.rest))
    if isinstance(rest, Labels):  # the factors are a vector of known length
        rest = rest._replace(factors=tf.TensorSpec(given.rest.factors.shape, tf.float64))
    return tf.TensorSpec([], tf.int32), values, rest


def _outputs(chunks: list[list[Any]], cut: CutStage) -> list[Any]:
    """The outputs of all chunks, with None for those that are no tensors."""
    joined = iter(tf.concat(several, 1) for several in zip(*chunks, strict=True))
    return [next(joined) if is_tensor else None for is_tensor in cut.structure]

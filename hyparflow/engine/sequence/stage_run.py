"""One micro-batch in a stage whose sequences are divided: its forward, and its backward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.section_cut import Carried
from hyparflow.engine.sequence.chunked_attention import AttentionRun, ChunkedAttention
from hyparflow.engine.sequence.exchange import ShardExchange
from hyparflow.engine.sequence.kept_forwards import KeptForwards
from hyparflow.engine.sequence.seen_positions import may_count, require_right
from hyparflow.engine.sequence.stage_trace import CutStage
from hyparflow.engine.sequence.store import Store
from hyparflow.engine.sequence.tiles import joined, slicer, tiles_of
from hyparflow.engine.sequence.token_inputs import TokenInputs
from hyparflow.model.keras_internals.dropout import drawn_seed
from hyparflow.pipeline.token_layout import Positions

__all__ = ["StageRun"]


class StageRun:
    """The chunks of one micro-batch on their way through the sections of a stage.

    Args:
        number: of the run, for keys of the store.
        cut: the traced stage.
        attention: its attention layers, in the order of its sections.
        inputs: what it takes.
        store: keeps tensors.
        kept: what forwards keep for their backwards, where they keep something.
        exchange: among the shards.
        tile: how many positions the last section takes at once.
        at_padding: whether what is computed at positions of padding may count in the loss.
    """

    def __init__(
        self,
        number: int,
        cut: CutStage,
        attention: Sequence[ChunkedAttention],
        inputs: TokenInputs,
        store: Store,
        kept: KeptForwards,
        exchange: ShardExchange,
        tile: int,
        at_padding: bool = True,
    ) -> None:
        self._number, self._cut, self._sections = number, cut, cut.sections
        self._inputs, self._store, self._kept = inputs, store, kept
        self._exchange, self._tile = exchange, tile
        self._layout = inputs.layout
        self._pieces = inputs.layout.pieces(inputs.shard)
        self._seeds = [tf.cast(drawn_seed(seed), tf.int64) for seed in cut.seeds]
        self._padding: list[Any] = [None] * len(self._pieces)
        self._at_padding = at_padding
        self._may_count: np.ndarray | None = None
        self._padded = [layer.core for layer in attention if layer.core.is_padded]
        self._attention = [self._attend(n, layer) for n, layer in enumerate(attention)]

    def _attend(self, number: int, layer: ChunkedAttention) -> AttentionRun:
        generator = self._cut.seeds_of_scores[number]
        seed = [0, 0] if generator is None else drawn_seed(generator)
        return layer.run(
            self._number * len(self._sections.taken) + number,
            self._layout,
            self._store,
            self._padding if layer.core.is_padded else None,
            tf.cast(seed, tf.int64),
            self._cut.trains,
        )

    @property
    def chunks(self) -> range:
        """The numbers of the chunks."""
        return range(len(self._pieces))

    def sizes_kept(self, rows: int) -> dict[tuple[int, int, int], int]:
        """Bytes that each chunk of each section would keep for its backward."""
        found = {}
        # The backward of a loss follows its forward at once.
        for number in range(self._sections.count - self._sections.is_loss):
            each = rows * self._sections.bytes_kept[number]
            for chunk, (start, stop) in enumerate(self._pieces):
                found[self._number, number, chunk] = (stop - start) * each
        return found

    def _key(self, name: str, section: int, chunk: int) -> Hashable:
        return name, self._number, section, chunk

    # --- forward ---

    def forward(self, keeps: bool) -> None:
        """Run all sections but the last.

        Args:
            keeps: whether a backward follows.
        """
        for number in range(self._sections.count - 1):
            for chunk in self.chunks:
                given, handed = self._run(number, chunk, keeps)
                query, key, value, *there = given
                if there and self._padding[chunk] is None:
                    lengths = self._layout.lengths(chunk)
                    self._padding[chunk] = self._exchange.gathered(there[0], lengths)
                self._attention[number].put(chunk, (query, key, value))
                if handed:
                    self._store.put(self._key("handed on", number, chunk), handed)
            if number and not keeps:
                self._let_go(number)

    def last(self, keeps: bool, tiled: bool = False) -> list[list[Any]]:
        """Run the last section: its results, chunk by chunk, or tile by tile."""
        number = self._sections.count - 1
        results = []
        for chunk in self.chunks:
            if not tiled:
                results.append(self._run(number, chunk, keeps)[0])
                continue
            awaited, taken = self._awaited(number, chunk, keeps), self._taken(number, chunk)
            for tile in tiles_of(self._pieces[chunk], self._tile):
                part = slicer(self._pieces[chunk], tile)
                arguments = self._arguments(chunk, tile)
                made, _, _ = self._sections.forward(
                    number, part(awaited), [part(x) for x in taken], arguments
                )
                self._require_right(made[1], tile)
                results.append(made)
        if number and not keeps:
            self._let_go(number)
        return results

    def _run(self, number: int, chunk: int, keeps: bool) -> tuple[list[Any], list[Any]]:
        awaited, taken = self._awaited(number, chunk, keeps), self._taken(number, chunk)
        arguments, place = (
            self._arguments(chunk, self._pieces[chunk]),
            (self._number, number, chunk),
        )
        made, handed, kept = self._sections.forward(
            number, awaited, taken, arguments, self._kept.keeps(place)
        )
        if self._kept.keeps(place):
            self._kept.put(place, kept)
        return made, handed

    def _awaited(self, number: int, chunk: int, keeps: bool) -> Any:
        """What comes of the attention before a section, which is computed now."""
        if not number:
            return None
        means = self._attention[number - 1].means(chunk, keeps)
        if keeps:
            self._store.put(self._key("means", number, chunk), [means])
        return means

    def _arguments(self, chunk: int, positions: Positions) -> list[Any]:
        start, stop = positions
        before = sum(b - a for a, b in self._pieces[:chunk]) + start - self._pieces[chunk][0]
        return [*self._inputs.arguments((start, stop), before), *self._seeds]

    def _taken(self, number: int, chunk: int) -> list[Any]:
        """What a section takes of sections before."""
        origins = {origin for origin, _ in self._sections.taken[number]}
        made = {o: self._store.get(self._key("handed on", o, chunk)) for o in origins}
        return [made[origin][place] for origin, place in self._sections.taken[number]]

    def _let_go(self, number: int) -> None:
        """Keep nothing that a section was the last to take, if no backward follows."""
        self._attention[number - 1].drop()
        later = {o for taken in self._sections.taken[number + 1 :] for o, _ in taken}
        for origin in {o for o, _ in self._sections.taken[number]} - later:
            for chunk in self.chunks:
                self._store.drop(self._key("handed on", origin, chunk))

    # --- backward ---

    def last_backward(self, finish: Callable[[list[Any]], Any], add: Callable[[Any], None]) -> None:
        """Run the last section, which is loss and metrics, forward and backward, tile by tile.

        Args:
            finish: see `Sections.backward`.
            add: takes what `finish` returned.
        """
        number = self._sections.count - 1
        for chunk in self.chunks:
            awaited, taken = self._awaited(number, chunk, keeps=True), self._taken(number, chunk)
            made = []
            for tile in tiles_of(self._pieces[chunk], self._tile):
                part = slicer(self._pieces[chunk], tile)
                results, of_tensors, finished = self._sections.backward(
                    number,
                    part(awaited),
                    [part(x) for x in taken],
                    self._arguments(chunk, tile),
                    [],
                    finish,
                )
                add(finished)
                self._require_right(results[1], tile)
                made.append(of_tensors)
            gradients = [joined(several) for several in zip(*made, strict=True)]
            self._pass_back(number, chunk, awaited, gradients)

    def _require_right(self, counted: Any, tile: Positions) -> None:
        """Check that what counts in the loss of a tile is computed right, if there is padding."""
        if not self._padded:
            return
        if self._may_count is None:
            there = np.concatenate([np.asarray(x) for x in self._padding], 1).astype(bool)
            self._may_count = may_count(there, self._padded, self._at_padding)
        require_right(counted, self._may_count, tile)

    def outputs_backward(
        self,
        gradients: Sequence[Any],
        finish: Callable[[list[Any]], Any],
        add: Callable[[Any], None],
    ) -> None:
        """Run the backward of the last section, which gives outputs.

        Args:
            gradients: of the outputs that have one, of all positions of this shard.
            finish, add: as for `last_backward`.
        """
        number, before = self._sections.count - 1, 0
        for chunk in self.chunks:
            length = self._pieces[chunk][1] - self._pieces[chunk][0]
            part = [x[:, before : before + length] for x in gradients]
            before += length
            self._section_backward(number, chunk, part, finish, add)

    def backward(self, finish: Callable[[list[Any]], Any], add: Callable[[Any], None]) -> list[Any]:
        """Run the backward of all sections before the last; the gradients of the inputs."""
        for number in reversed(range(self._sections.count - 1)):
            for chunk, gradients in self._attention[number].gradients():
                self._section_backward(number, chunk, list(gradients), finish, add)
        found = [self._store.take(self._key("of inputs", 0, c)) for c in self.chunks]
        return [joined(several) for several in zip(*found, strict=True)]

    def _section_backward(
        self,
        number: int,
        chunk: int,
        gradients: list[Any],
        finish: Callable[[list[Any]], Any],
        add: Callable[[Any], None],
    ) -> None:
        awaited = self._store.get(self._key("means", number, chunk))[0] if number else None
        if any(self._sections.differentiable[number]):
            gradients += self._store.take(self._key("of handed on", number, chunk))
        _, of_tensors, finished = self._sections.backward(
            number,
            awaited,
            self._taken(number, chunk),
            self._arguments(chunk, self._pieces[chunk]),
            gradients,
            finish,
            self._kept.take((self._number, number, chunk)),
        )
        add(finished)
        if self._sections.differentiable[number]:
            self._store.drop(self._key("handed on", number, chunk))
        self._pass_back(number, chunk, awaited, of_tensors)

    def _pass_back(self, number: int, chunk: int, awaited: Any, gradients: list[Any]) -> None:
        """Give gradients to the attention before a section, and to what it took."""
        following = list(gradients)
        if number:
            self._attention[number - 1].put_gradient(chunk, following.pop(0), awaited)
            self._store.drop(self._key("means", number, chunk))
        taken = [
            (origin, place)
            for origin, place in self._sections.taken[number]
            if self._sections.differentiable[origin][place]
        ]
        for origin in {origin for origin, _ in taken}:
            self._add_up(origin, chunk, taken, following[: len(taken)])
        if not number:
            self._store.put(self._key("of inputs", 0, chunk), following[len(taken) :])

    def _add_up(
        self, origin: int, chunk: int, taken: Sequence[Carried], gradients: Sequence[Any]
    ) -> None:
        """Add gradients to those of what a section handed on."""
        places = [p for p, yes in enumerate(self._sections.differentiable[origin]) if yes]
        key = self._key("of handed on", origin, chunk)
        sums: list[Any] = list(self._store.take(key)) if self._store.has(key) else []
        if not sums:
            handed = self._store.get(self._key("handed on", origin, chunk))
            sums = [tf.zeros_like(handed[place]) for place in places]
        for (start, place), gradient in zip(taken, gradients, strict=True):
            if start == origin:
                sums[places.index(place)] += gradient
        self._store.put(key, sums)

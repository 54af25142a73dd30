"""What a trial of a model found out about its attention layers."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.engine.sequence.attention_core import AttentionCore

__all__ = ["CoresFound"]


@dataclass
class CoresFound:
    """What a trial found out.

    Attributes:
        cores: id of an attention layer -> what it computes.
        sizes: id of an attention layer -> numbers of a head of keys, and of values.
        tried: how many tokens the masks were tried on.
        at_padding: whether what is computed at positions of padding is right, too.
        constants: name of an attention layer -> whole numbers that its mask is made with.
        stored: names of attention layers whose masks are read from an array or a weight.
    """

    cores: dict[int, AttentionCore]
    sizes: dict[int, tuple[int, int]]
    tried: int
    at_padding: bool
    constants: dict[str, set[int]]
    stored: set[str]

    def require_tried(self, length: int) -> None:
        """Check that no mask can be another at distances that were not tried.

        Args:
            length: of sequences.

        Raises:
            ValueError: naming the layer of such a mask.
        """
        if self.stored and self.tried < length:
            raise ValueError(
                "The mask of attention in sequences that are divided must be causal, full, or a "
                f"window, at all distances. Received: a mask of '{min(self.stored)}' that is read "
                f"from an array or a weight, and sequences of {length} positions, of which "
                f"{self.tried} were tried. Pass use_causal_mask=True or `sliding_window` to the "
                "attention layer, or leave `num_sequence_shards` and `num_sequence_chunks` out."
            )
        for name, constants in self.constants.items():
            if untried := sorted(c for c in constants if self.tried < c < length):
                raise ValueError(
                    "The mask of attention in sequences that are divided must be causal, full, or "
                    f"a window, at all distances. Received: a mask of '{name}' that is made with "
                    f"the number {untried[0]}, and sequences of {length} positions, of which "
                    f"{self.tried} were tried. Pass the window as `sliding_window` of the "
                    "attention layer, or leave `num_sequence_shards` and `num_sequence_chunks` out."
                )

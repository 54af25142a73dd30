"""What the gradients of embeddings take after a backward: they have a row for each token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyparflow.engine.compiled.section_sizes import SectionSizes

__all__ = ["LookedUp"]


@dataclass(frozen=True)
class LookedUp:
    """The gradients of embeddings on a rank; in bytes.

    A rank joins the rows of its own tokens in the pool of TensorFlow's memory
    (`hyparflow.engine.gradients.microbatch_sum`). Where several ranks hold the weight, each gathers
    the rows of all tokens beside the pool (`Communicator.all_gather_rows`), and its own are still
    there. The optimizer multiplies what it applies, into tensors of the pool.

    Attributes:
        own: the rows of this rank's tokens.
        gathered: those of all tokens; 0 where nobody else holds the weight.
        tables: the weights, which have no sum of gradients besides.
    """

    own: float = 0.0
    gathered: float = 0.0
    tables: int = 0

    @property
    def pooled(self) -> float:
        """What the pool has of them at the update."""
        return self.own + (self.gathered or self.own)

    @classmethod
    def of(cls, sections: Iterable[SectionSizes], tokens: int, num_peers: int) -> LookedUp:
        """Those of some sections.

        Args:
            sections: the sections.
            tokens: of the global batch.
            num_peers: ranks that hold the same weights, each with an equal share of the tokens.
        """
        several = list(sections)
        every = float(tokens * sum(section.rows for section in several))
        tables = sum(section.tables for section in several)
        return cls(every / num_peers, every if num_peers > 1 else 0.0, tables)

"""What the ranks did in the last steps of a training: recorded, written, read, summed up, drawn."""

from hyparflow.tracing.trace import RankTrace, Trace

__all__ = ["RankTrace", "Trace"]

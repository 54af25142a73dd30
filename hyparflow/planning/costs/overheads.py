"""What a training step costs besides its operations. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hyparflow.formats.records import Amount

__all__ = ["Overheads"]


@dataclass(frozen=True)
class Overheads:
    """The costs of a step besides its operations, in seconds; the last ones in bytes.

    Attributes:
        call: each compiled call of a stage.
        step: each step, whatever the model.
        message: each message, at either end.
        accumulate: each byte of gradients that is added to those of other micro-batches.
        accumulate_weight: each weight's gradient that is added, whatever its size.
        apply: each byte of weights that the optimizer updates.
        apply_weight: each weight that the optimizer updates, whatever its size.
        reduce: each byte of gradients that is packed for a sum over replicas, and unpacked.
        reduce_weight: each weight's gradient that is packed and unpacked, whatever its size.
        program: bytes of memory for each compiled operation of TensorFlow, if forward and
            backward are one call.
        program_in_two: the same if they are two calls, which are traced as one.
        program_of_keras: additional bytes of plain Keras.
        program_of_update: bytes of memory for the compiled update of a trained weight.
        runtime: bytes of memory that TensorFlow takes when it first trains anything.
        xla: bytes of memory that XLA takes when it first compiles anything.
        sums: bytes of memory that sums over replicas take, however small.
        trial: bytes of memory that the trial of what attention computes takes, before sequences
            are divided.
        strip: bytes of memory for each strip that is compiled of a block of attention.
        operation, variable, trained: bytes of objects for each operation and variable of the whole
            model, which every rank builds; and for each trained one, its slots and its sums.
        scratch: bytes that an operation takes for itself while it runs, however few its rows.
    """

    call: Amount = 5e-4
    step: Amount = 3e-3
    message: Amount = 1e-4
    accumulate: Amount = 5e-10
    accumulate_weight: Amount = 4e-5
    apply: Amount = 1e-9
    apply_weight: Amount = 2e-5
    reduce: Amount = 1e-9
    reduce_weight: Amount = 3e-5
    program: Amount = 22e3
    program_in_two: Amount = 27.5e3
    program_of_keras: Amount = 20e3
    program_of_update: Amount = 190e3
    runtime: Amount = 61e6
    xla: Amount = 68e6
    sums: Amount = 22e6
    # What a process holds beside its tensors (what is resident, less the peak of the pool) on
    # TensorFlow 2.21: before the first trace of a divided GPT of 4 layers, less `runtime` and
    # objects; and for each of ten `AttentionBlocks` in turn, of 16 strips each, where Python had
    # not collected its garbage yet.
    trial: Amount = 14e6
    strip: Amount = 1.2e6
    operation: Amount = 14e3
    variable: Amount = 6e3
    trained: Amount = 20e3
    scratch: Amount = 0.0

    def program_bytes(self, whole: Any, in_two: Any, updated: Any) -> Any:
        """Bytes of memory for compiled functions; of numbers, or of arrays of them.

        Args:
            whole: operations in one call.
            in_two: operations in two calls.
            updated: trained weights.
        """
        return (
            self.program * whole + self.program_in_two * in_two + self.program_of_update * updated
        )

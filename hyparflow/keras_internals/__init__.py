"""Every use of what Keras does not make public, in one place, with the reason beside it.

Everything else in hyparflow uses the public API of Keras 3.
"""

from __future__ import annotations

from hyparflow.keras_internals.compiled import (
    applying_part,
    build_compiled,
    compile_arguments,
    compile_loss,
    compile_metrics,
    copy_with_losses,
    has_overridden,
    loss_entries,
    loss_tracker,
    loss_values,
    masked_weight,
    settable_learning_rate,
    symbolic_batch,
)
from hyparflow.keras_internals.data import (
    array_sources,
    is_array_data,
    unpack,
)
from hyparflow.keras_internals.graph import (
    additional_losses,
    all_layers,
    call_model,
    execution_order,
    get_mask,
    moment_weight,
    moments,
    opened_graph,
    output_structure,
    own_compute_loss,
    replace_moments,
    restore_moments,
    seed_states,
    set_mask,
    standardize_inputs,
    state_variables,
    symbolic_output,
    takes_training,
)

__all__ = [
    "additional_losses",
    "all_layers",
    "applying_part",
    "array_sources",
    "build_compiled",
    "call_model",
    "compile_arguments",
    "compile_loss",
    "compile_metrics",
    "copy_with_losses",
    "execution_order",
    "get_mask",
    "has_overridden",
    "is_array_data",
    "loss_entries",
    "loss_tracker",
    "loss_values",
    "masked_weight",
    "moment_weight",
    "moments",
    "opened_graph",
    "output_structure",
    "own_compute_loss",
    "replace_moments",
    "restore_moments",
    "seed_states",
    "set_mask",
    "settable_learning_rate",
    "standardize_inputs",
    "state_variables",
    "symbolic_batch",
    "symbolic_output",
    "takes_training",
    "unpack",
]

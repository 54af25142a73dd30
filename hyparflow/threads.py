"""How many threads TensorFlow computes with."""

from __future__ import annotations

import os

from hyparflow import launcher

__all__ = ["intra_op_threads"]


def intra_op_threads() -> int:
    """How many threads an operation may use in this process."""
    import tensorflow as tf

    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    set_ = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(chosen) or (int(set_) if set_.isdigit() else len(launcher.usable_cores()))

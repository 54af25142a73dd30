"""Whether a bank of experts computes the same by the experts that were chosen as by all of them."""

from __future__ import annotations

import inspect

import numpy as np
import tensorflow as tf

from hyparflow.model.experts.expert_banks import ExpertBank

__all__ = ["computes_alike"]

_TOKENS = 6
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3}


def computes_alike(bank: ExpertBank) -> bool:
    """Try a bank on a few random rows, of which some experts get none.

    Args:
        bank: whose weights have values.
    """
    layer, draw = bank.layer, np.random.default_rng(0)
    width = next(weight.shape[1] for weight in bank.weights if len(weight.shape) == 3)
    kind = tf.as_dtype(layer.compute_dtype)
    rows = tf.cast(draw.normal(size=(_TOKENS, width)), kind)
    shares = draw.uniform(0.5, 1, (_TOKENS, bank.num_experts))
    shares *= np.arange(bank.num_experts) % 2 == draw.integers(0, 2, (_TOKENS, 1))
    shares[:, -1] = 0
    shares = tf.cast(shares, kind)
    takes_shares = len(inspect.signature(type(layer).call).parameters) > 2
    try:
        with tf.init_scope():
            whole = _made(bank, rows, shares, takes_shares)
            with bank.sparse():
                parts = _made(bank, rows, shares, takes_shares)
    except Exception:  # it takes other rows, or none without the rest of the model
        return False
    tolerance = _TOLERANCE.get(kind.name, 0.05)
    size = max(float(np.abs(whole).max()), 1e-30)
    return bool(np.abs(whole - parts).max() <= tolerance * size)


def _made(bank: ExpertBank, rows: tf.Tensor, shares: tf.Tensor, takes_shares: bool) -> np.ndarray:
    if takes_shares:
        made = bank.layer(rows, shares)
    else:
        made = tf.reduce_sum(bank.layer(rows) * tf.transpose(shares)[:, :, None], 0)
    return np.asarray(tf.cast(made, tf.float64))

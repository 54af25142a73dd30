"""`hyparflow.layers.MixtureOfExperts`: feed-forward experts, of which a token visits a few."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from hyparflow.formats.argument_checks import count_of, flag
from hyparflow.model.experts.expert_loop import Expert
from hyparflow.model.experts.routing import chosen_shares, load_balancing_loss, within_capacity
from hyparflow.model.experts.sparse_mixture import mixed

__all__ = ["MixtureOfExperts"]


@keras.saving.register_keras_serializable(package="hyparflow")
class MixtureOfExperts(keras.layers.Layer):
    """A feed-forward block whose weights are many experts, of which each token passes through few.

    A router, a softmax over experts, chooses `top_k` of them for a token. The output is the sum of
    what these make of it, times their shares (Fedus et al., arXiv 2101.03961; Lepikhin et al.,
    arXiv 2006.16668). Experts that a token does not choose are not computed for it.

    Args:
        num_experts: Integer. The number of experts.
        hidden_dim: Integer. The width between the two products of an expert.
        top_k: Integer. How many experts a token passes through.
        activation: String or function of Keras's, behind an expert's first product.
        gated: Boolean. Whether the first product, activated, is multiplied by a second of the same
            inputs, as in SwiGLU.
        use_bias: Boolean. Whether the products of experts have biases.
        normalize_shares: Boolean. Whether the shares of a token's experts add up to 1. With
            `top_k=1` the router then learns by the load-balancing loss alone, so the default,
            `None`, is `top_k > 1`.
        capacity_factor: Float or `None`. An expert takes at most so many times an even share of a
            batch's choices; what is left over passes by it. `None`: all.
        load_balancing: Float. The factor of the loss that is added in training, which is least
            where experts have equal numbers of tokens; 0 for none.
        kernel_initializer: Of the experts' kernels, each of which is drawn as a matrix alone.
        bias_initializer: Of their biases.
        router_initializer: Of the router's kernel.
        **kwargs: Of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., width)`. Tokens that a mask leaves out pass through no expert.

    Output shape:
        The same. There is no residual connection in it.

    Raises:
        ValueError: If an argument is not valid.

    Example::

        x = x + hf.layers.MixtureOfExperts(num_experts=16, hidden_dim=1024, top_k=2)(norm(x))
    """

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        top_k: int = 2,
        activation: Any = "gelu",
        gated: bool = False,
        use_bias: bool = True,
        normalize_shares: bool | None = None,
        capacity_factor: float | None = None,
        load_balancing: float = 0.01,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        router_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_experts = count_of("num_experts", num_experts)
        self.hidden_dim = count_of("hidden_dim", hidden_dim)
        self.top_k = count_of("top_k", top_k)
        if self.top_k > self.num_experts:
            raise ValueError(
                "`top_k` must be at most `num_experts`. "
                f"Received: top_k={top_k}, num_experts={num_experts}"
            )
        self.gated, self.use_bias = flag("gated", gated), flag("use_bias", use_bias)
        self.normalize_shares = top_k > 1 if normalize_shares is None else normalize_shares
        self.capacity_factor = _positive("capacity_factor", capacity_factor, may_be_none=True)
        self.load_balancing = _positive("load_balancing", load_balancing, may_be_zero=True)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.router_initializer = keras.initializers.get(router_initializer)
        self.supports_masking = True
        self.supports_jit = False  # how many tokens an expert has is known when it runs

    def build(self, input_shape: Any) -> None:
        """Make the variables."""
        width, hidden = input_shape[-1], self.hidden_dim
        if width is None:
            raise ValueError(
                "The last axis of the inputs of `MixtureOfExperts` must be known. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.router_kernel = self.add_weight(
            name="router_kernel",
            shape=(width, self.num_experts),
            initializer=self.router_initializer,
            autocast=False,
        )
        self.expert_weights = [self._kernel("first_kernel", width, hidden)]
        if self.gated:
            self.expert_weights.append(self._kernel("gate_kernel", width, hidden))
        self.expert_weights.append(self._kernel("second_kernel", hidden, width))
        if self.use_bias:
            self.expert_weights += [self._bias("first_bias", hidden)]
            self.expert_weights += [self._bias("gate_bias", hidden)] if self.gated else []
            self.expert_weights += [self._bias("second_bias", width)]
        self.built = True

    def call(self, inputs: Any, mask: Any = None, training: bool = False) -> Any:
        """The outputs of the layer."""
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        probabilities, shares, chosen = self.route(rows)
        kind = probabilities.dtype
        weight = None if mask is None else tf.cast(tf.reshape(mask, [-1]), kind)
        if training and self.load_balancing:
            loss = self._balance(probabilities, chosen, weight)
            self.add_loss(tf.cast(self.load_balancing, kind) * loss)
        if weight is not None:
            chosen *= weight[:, None, None]
        if self.capacity_factor is not None:
            chosen = within_capacity(chosen, self.capacity_factor)
        routing = tf.einsum("tke,tk->et", chosen, shares)
        return tf.reshape(self._mixed(rows, routing, self._expert), tf.shape(inputs))

    def route(self, rows: Any) -> tuple[Any, Any, Any]:
        """What the router says of tokens.

        Args:
            rows: Tensor (tokens, width).

        Returns:
            The probabilities of all experts, (tokens, experts); the shares of those chosen, the
            largest first, (tokens, top_k); and a one-hot tensor of these, (tokens, top_k, experts).
        """
        # In half precision the choice between two experts would be rounding.
        kind = tf.as_dtype(self.compute_dtype)
        kind = kind if kind.size > 2 else tf.float32
        logits = tf.matmul(tf.cast(rows, kind), tf.cast(self.router_kernel.value, kind))
        probabilities = tf.nn.softmax(logits)
        return probabilities, *chosen_shares(probabilities, self.top_k, self.normalize_shares)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return super().get_config() | {
            "num_experts": self.num_experts,
            "hidden_dim": self.hidden_dim,
            "top_k": self.top_k,
            "activation": keras.activations.serialize(self.activation),
            "gated": self.gated,
            "use_bias": self.use_bias,
            "normalize_shares": self.normalize_shares,
            "capacity_factor": self.capacity_factor,
            "load_balancing": self.load_balancing,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "router_initializer": keras.initializers.serialize(self.router_initializer),
        }

    def _balance(self, probabilities: Any, chosen: Any, weight: Any) -> Any:
        """See `hyparflow.model.experts.balanced_layers.BalanceLoss`."""
        return load_balancing_loss(probabilities, chosen, weight)

    def _mixed(self, rows: Any, routing: Any, expert: Expert) -> Any:
        """See `hyparflow.model.experts.expert_layers.Mixture`."""
        return mixed(rows, routing, list(map(tf.convert_to_tensor, self.expert_weights)), expert)

    def _expert(self, rows: Any, *weights: Any) -> Any:
        """What one expert makes of its rows."""
        count = 3 if self.gated else 2
        kernels, biases = weights[:count], weights[count:]

        def product(inputs: Any, number: int) -> Any:
            made = tf.matmul(inputs, kernels[number][0])
            return made + biases[number][0] if biases else made

        inner = self.activation(product(rows, 0))
        return product(inner * product(rows, 1) if self.gated else inner, count - 1)

    def _kernel(self, name: str, inputs: int, outputs: int) -> Any:
        return self.add_weight(
            name=name,
            shape=(self.num_experts, inputs, outputs),
            initializer=_of_each(self.kernel_initializer, self.num_experts),
        )

    def _bias(self, name: str, width: int) -> Any:
        return self.add_weight(
            name=name, shape=(self.num_experts, width), initializer=self.bias_initializer
        )


def _of_each(initializer: Any, count: int) -> Any:
    """An initializer of `count` matrices, as the one given is of one.

    Those of Keras that scale by the sizes of a kernel take the first axis for one of places, which
    makes what is drawn smaller by the root of `count`.
    """
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer
    return keras.initializers.VarianceScaling(
        initializer.scale * count,
        mode=initializer.mode,
        distribution=initializer.distribution,
        seed=initializer.seed,
    )


def _positive(
    name: str, value: Any, may_be_none: bool = False, may_be_zero: bool = False
) -> float | None:
    if value is None and may_be_none:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (0 < value < float("inf") or (may_be_zero and value == 0)):
        more = " or 0" if may_be_zero else ", or None" if may_be_none else ""
        raise ValueError(f"`{name}` must be a positive number{more}. Received: {name}={value!r}")
    return float(value)

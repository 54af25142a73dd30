"""A routing trace: which experts the routers of a model chose, token by token."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from hyparflow.experts.trace_files import read_trace, write_trace
from hyparflow.formats.argument_checks import count_of, share_of, whole_number
from hyparflow.formats.text import counted, shortened

__all__ = ["RoutingTrace"]

_BLOCKS = 100  # pieces of a text of which each is held out, or not
_MOST_EXPERTS = 2**16  # of a layer


@dataclass(frozen=True, eq=False, repr=False)
class RoutingTrace:
    """Which experts each token was sent to, layer by layer.

    Args:
        experts: Array of integers, tokens x layers x top_k, or tokens x layers where each token has
            one expert. Tokens stand in the order of the text. The experts of a token in a layer are
            numbered from 0, the one with the largest weight first. Layers without experts are left
            out.
        num_experts: Integer. The number of experts of a layer, the same in each.
        model: String. The name of the model.
        layers: Sequence of strings. The names of the layers; `"0"`, `"1"` and so on if not given.

    Raises:
        ValueError: If the array has another shape, or anything in it is no expert.
    """

    experts: np.ndarray
    num_experts: int
    model: str = ""
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        num_experts = count_of("num_experts", self.num_experts)
        experts = _checked(self.experts, num_experts)
        layers = tuple(self.layers) or tuple(map(str, range(experts.shape[1])))
        _check_names(self.model, layers, experts.shape[1])
        for name, value in (("num_experts", num_experts), ("experts", experts), ("layers", layers)):
            object.__setattr__(self, name, value)

    @property
    def num_tokens(self) -> int:
        """Integer. The number of tokens."""
        return int(self.experts.shape[0])

    @property
    def num_layers(self) -> int:
        """Integer. The number of layers with experts."""
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        """Integer. The number of experts of a token in a layer."""
        return int(self.experts.shape[2])

    def split(self, held_out: float = 0.25, seed: int = 0) -> tuple[RoutingTrace, RoutingTrace]:
        """Part the tokens into those to learn from and those to judge by.

        Neighbours in a text are routed alike, so whole pieces of the text are held out.

        Args:
            held_out: Float. The share of tokens to hold out, above 0 and below 1.
            seed: Integer. Which pieces.

        Returns:
            A tuple of two traces: the tokens to learn from, and those that were held out.

        Raises:
            ValueError: If the share is not between 0 and 1, or there is only one token.
        """
        share = share_of("held_out", held_out)
        if self.num_tokens < 2:
            raise ValueError(
                "A routing trace must have two tokens or more to hold some out. Received: one. "
                "Record more tokens."
            )
        blocks = np.array_split(np.arange(self.num_tokens), min(_BLOCKS, self.num_tokens))
        count = min(max(1, round(share * len(blocks))), len(blocks) - 1)
        order = np.random.default_rng(whole_number("seed", seed)).permutation(len(blocks))
        is_held_out = np.zeros(self.num_tokens, bool)
        is_held_out[np.concatenate([blocks[block] for block in order[:count]])] = True
        return self._of(self.experts[~is_held_out]), self._of(self.experts[is_held_out])

    def shuffled(self, seed: int = 0) -> RoutingTrace:
        """The same choices in each layer, dealt to tokens anew: what was between layers is gone.

        Args:
            seed: Integer. The order of the tokens.
        """
        random = np.random.default_rng(whole_number("seed", seed))
        columns = [self.experts[random.permutation(self.num_tokens), n] for n in self._numbers]
        return self._of(np.stack(columns, axis=1))

    def affinity(self) -> np.ndarray:
        """How often tokens go from an expert to another in the layer after it.

        Returns:
            Array of integers, (layers - 1) x experts x experts: the number of tokens whose first
            expert in a layer is the one, and that have the other among theirs in the next layer.
        """
        size = self.num_experts
        found = np.empty((self.num_layers - 1, size, size), np.int64)
        for layer, counts in enumerate(found):
            pairs = self.experts[:, layer, :1].astype(np.int64) * size + self.experts[:, layer + 1]
            counts[:] = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)
        return found

    def visits(self) -> np.ndarray:
        """How many tokens chose each expert: array of integers, layers x experts."""
        each = [self.experts[:, layer].ravel() for layer in self._numbers]
        return np.stack([np.bincount(chosen, minlength=self.num_experts) for chosen in each])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file, complete or not at all.

        Args:
            path: String or path. The file: a table if it ends with `.csv`, else NumPy's format
                `.npz`, which is small and quickly read.
        """
        write_trace(path, self.experts, self.num_experts, self.model, self.layers)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RoutingTrace:
        """Read the trace that `save` wrote.

        Raises:
            ValueError: If the file holds no trace. The message names what is wrong.
        """
        return read_trace(path, lambda found: cls(**found))

    def __repr__(self) -> str:
        of = f" of {self.model!r}" if self.model else ""
        tokens = counted(self.num_tokens, "token", "tokens")
        layers = counted(self.num_layers, "layer", "layers")
        experts = counted(self.num_experts, "expert", "experts")
        return f"<RoutingTrace{of}: {tokens}, {layers} of {experts}, top {self.top_k}>"

    @property
    def _numbers(self) -> range:
        return range(self.num_layers)

    def _of(self, experts: np.ndarray) -> RoutingTrace:
        """The same model with other tokens."""
        return replace(self, experts=experts)


def _checked(experts: object, num_experts: int) -> np.ndarray:
    """The choices as tokens x layers x top_k, in the smallest type that holds them.

    Raises:
        ValueError: if something is wrong; it names the first such token.
    """
    array = np.asarray(experts)
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise ValueError(
            "A routing trace must be an array of numbers of the shape tokens x layers x top_k, "
            f"with one of each at least. Received: {array.dtype} of the shape {shape}. "
            "Stack the choices of the layers along the second axis."
        )
    if num_experts > _MOST_EXPERTS:
        raise ValueError(
            f"A layer may have {_MOST_EXPERTS} experts at most. Received: num_experts={num_experts}"
        )
    # No comparison with NaN holds.
    good = (array >= 0) & (array < num_experts)
    if array.dtype.kind == "f":
        good &= np.floor(array) == array
    _require(
        good,
        array,
        f"A routing trace must have whole numbers from 0 to {num_experts - 1}, those of experts.",
        f"Pass the number of all experts of a layer as `num_experts`, which is {num_experts}.",
    )
    array = array.astype(np.uint8 if num_experts <= 2**8 else np.uint16)
    ordered = np.sort(array, axis=2)
    _require(
        (ordered[:, :, 1:] != ordered[:, :, :-1]).all(axis=2, keepdims=True),
        array,
        "A routing trace must name an expert once for a token and layer.",
        "The axes are tokens, layers and the choices of a token in a layer.",
    )
    array.flags.writeable = False
    return array


def _require(good: np.ndarray, array: np.ndarray, rule: str, fix: str) -> None:
    """Raise an error about the first place that is not good."""
    if good.all():
        return
    token, layer, _ = np.argwhere(~good)[0]
    found = ", ".join(str(value) for value in array[token, layer])
    raise ValueError(f"{rule} Received: {found} for token {token} in layer {layer}. {fix}")


def _check_names(model: object, layers: tuple[object, ...], num_layers: int) -> None:
    is_text = isinstance(model, str) and all(isinstance(name, str) for name in layers)
    if not is_text or len(set(layers)) != num_layers:
        raise ValueError(
            "A routing trace must have a name for its model, and a different one for each layer. "
            f"Received: model={shortened(model)}, layers={shortened(layers)} for "
            f"{counted(num_layers, 'layer', 'layers')}. Leave `layers` out to number them."
        )

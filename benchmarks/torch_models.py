"""The models of `models.py` in PyTorch, as lists of blocks between which a pipeline may be cut.

They have the same layers, of the same sizes, with the same constants. Only "same" padding with
strides differs: PyTorch pads on both sides, TensorFlow on one. Weights are drawn by PyTorch.
"""

import torch
from samples import SYMBOLS
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Stage", "build", "loss", "make_optimizer", "size"]

_EPSILON = 1e-3  # of Keras's normalizations
_WEIGHT_DECAY = (
    2e-4  # Keras's L2(1e-4) adds 1e-4 times the square, so twice the weight to gradients
)


class Stage(nn.Module):
    """Consecutive blocks of a model.

    Images come and go as rows of pixels with all channels: so is what PyTorch sends, which must be
    contiguous, and convolutions take it in its "channels last" format without a copy.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x.permute(0, 3, 1, 2) if x.dim() == 4 else x)
        return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def build(name: str) -> list[nn.Module]:
    """The blocks of the model called `name`, which end in logits."""
    if name.startswith("resnet"):
        return resnet((int(name.removeprefix("resnet")) - 2) // 6)
    if name == "vgg16":
        return vgg16()
    if name == "lstm":
        return recurrent()
    return transformer(int(name.removeprefix("transformer") or 4))


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """The mean over samples, or over the characters of all."""
    return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


def make_optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    """SGD as in `models.py`; kernels of a ResNet's convolutions are regularized."""
    kernels = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d)]
    decayed = {id(weight) for weight in kernels if name.startswith("resnet")}
    groups = [
        {
            "params": [weight for weight in module.parameters() if (id(weight) in decayed) == much],
            "weight_decay": _WEIGHT_DECAY if much else 0.0,
        }
        for much in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)


def size(blocks: list[nn.Module]) -> tuple[int, int]:
    """How many numbers are trained, and how many others there are, as Keras counts them."""
    # PyTorch counts batches, too, as integers.
    buffers = [b for block in blocks for b in block.buffers() if b.is_floating_point()]
    weights = [weight for block in blocks for weight in block.parameters()]
    return sum(w.numel() for w in weights), sum(b.numel() for b in buffers)


def resnet(blocks: int) -> list[nn.Module]:
    """Version 1 of He et al., of so many basic blocks in each of three groups."""
    parts: list[nn.Module] = [nn.Sequential(conv(3, 16, 3), normalize(16), nn.ReLU())]
    for group in range(3):
        for index in range(blocks):
            strides = 2 if group > 0 and index == 0 else 1
            parts.append(BasicBlock(16 * 2**group // strides, 16 * 2**group, strides))
    return [*parts, nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))]


def conv(inputs: int, filters: int, size: int, strides: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, size, strides, padding=size // 2)


def normalize(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=0.01)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, filters: int, strides: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            conv(inputs, filters, 3, strides),
            normalize(filters),
            nn.ReLU(),
            conv(filters, filters, 3),
            normalize(filters),
        )
        self.shortcut = nn.Identity() if strides == 1 else conv(inputs, filters, 1, strides)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.main(x))


def vgg16() -> list[nn.Module]:
    """VGG16 for 32x32 images."""
    parts: list[nn.Module] = []
    inputs = 3
    for filters, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            parts.append(nn.Sequential(conv(inputs, filters, 3), nn.ReLU()))
            inputs = filters
        parts.append(nn.MaxPool2d(2))
    parts.append(nn.Sequential(nn.Flatten(), nn.Linear(512, 4096), nn.ReLU()))
    parts.append(nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()))
    return [*parts, nn.Linear(4096, 10)]


def transformer(blocks: int, width: int = 128, heads: int = 4) -> list[nn.Module]:
    """Predicts the next character: pre-normalised blocks with causal attention."""
    parts: list[nn.Module] = [nn.Embedding(SYMBOLS, width)]
    parts += [TransformerBlock(width, heads) for _ in range(blocks)]
    return [*parts, nn.Sequential(nn.LayerNorm(width, _EPSILON), nn.Linear(width, SYMBOLS))]


class TransformerBlock(nn.Module):
    """Attention, and two dense layers, each after a normalization and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.normalize = nn.LayerNorm(width, _EPSILON)
        self.project = nn.Linear(width, 3 * width)  # queries, keys and values
        self.combine = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width, _EPSILON),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.normalize(x))
        return x + self.dense(x)

    def attend(self, x: Tensor) -> Tensor:
        each = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*each, is_causal=True)
        return self.combine(y.transpose(1, 2).flatten(2))


def recurrent(width: int = 256) -> list[nn.Module]:
    """Predicts the next character by two recurrent layers; PyTorch's have a second bias."""
    parts: list[nn.Module] = [nn.Embedding(SYMBOLS, width)]
    parts += [Recurrent(width) for _ in range(2)]
    return [*parts, nn.Linear(width, SYMBOLS)]


class Recurrent(nn.Module):
    """The outputs of a layer for all steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0]
        return outputs

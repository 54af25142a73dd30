"""Draws the pictures of the documentation: python docs/pictures.py.

They are plans of one small model. Their costs are counted, not measured, so that they come out the
same on every machine, in seconds. They are narrower than what `Plan.plot` draws, so that their text
is as large as that of the page, and show the memory of each partition below the step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import layers

import hyparflow as hf
from hyparflow.planning.gantt import draw_step, new_figure, save_picture, whole_numbers

FOLDER = Path(__file__).with_name("pictures")
BLOCKS = 16
BATCH = 64
WIDTH = 7.2  # inches
COLUMNS = 7  # of a legend
MOST_MEMORY = 300  # MiB, the same in all pictures, so that they can be compared
MEMORY = {
    "weights, gradients, optimizer state": (("weights", "gradients", "slots"), "#0072b2"),
    "activations and messages": (("activations", "buffers"), "#e69f00"),
    "program": (("program",), "#999999"),
}

# Two nodes, and a network slow enough for the sums between them to be seen.
SLOW = hf.Cluster(nodes=2, ranks_per_node=2, between=hf.Link(latency=1e-3, bandwidth=1e7))
PIPELINE: dict[str, Any] = {"num_partitions": 4, "lpp": [8, 8, 8, 10]}
PLANS: dict[str, dict[str, Any]] = {
    "hybrid": {"num_partitions": 2, "num_replicas": 2, "num_microbatches": 4, "lpp": [16, 18]}
    | {"cluster": SLOW},
    "one_microbatch": PIPELINE | {"num_microbatches": 1},
    "gpipe": PIPELINE | {"num_microbatches": 8, "schedule": "gpipe"},
    "1f1b": PIPELINE | {"num_microbatches": 8},
    "interleaved": {"num_partitions": 4, "lpp": [4] * 7 + [6]}
    | {"num_microbatches": 8, "schedule": "interleaved", "stages_per_partition": 2},
    "zero_bubble": PIPELINE | {"num_microbatches": 8, "schedule": "zero-bubble"},
    "zero_bubble_v": {"num_partitions": 4, "lpp": [4] * 7 + [6]}
    | {"num_microbatches": 8, "schedule": "zero-bubble-v"},
}


def build() -> keras.Model:
    """Equal residual blocks, so that equal partitions exist."""
    inputs = keras.Input((32, 32, 64))
    x = inputs
    for _ in range(BLOCKS):
        y = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10)(x), name="model")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def draw(plan: hf.Plan, path: Path) -> None:
    """One step, and below it the memory of each partition."""
    what, works = plan.rows()
    heights = [1.1 + 0.42 * len(works), 0.9 + 0.26 * plan.num_partitions]
    figure = new_figure(WIDTH, sum(heights))
    step, memory = figure.subplots(2, 1, height_ratios=heights)
    draw_step(step, works, plan.num_partitions, what=what)
    narrow_legend(step)
    draw_memory(memory, plan)
    save_picture(figure, path)


def narrow_legend(axes: Any) -> None:
    """Let the legend of a step fit a narrow picture."""
    old = axes.get_legend()
    names = [text.get_text() for text in old.get_texts()]
    legend(axes, old.legend_handles, names)


def legend(axes: Any, *entries: Any) -> None:
    """A legend above the axes."""
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    narrow = {"ncols": COLUMNS, "columnspacing": 1.0, "handlelength": 1.2, "fontsize": 8}
    axes.legend(*entries, frameon=False, **narrow, **place)


def draw_memory(axes: Any, plan: hf.Plan) -> None:
    """What fills the memory of each partition at the peak."""
    numbers = range(plan.num_partitions)
    start = [0.0 for _ in numbers]
    for label, (names, colour) in MEMORY.items():
        sizes = [sum(getattr(p.memory, name) for name in names) / 2**20 for p in plan.partitions]
        axes.barh(numbers, sizes, left=start, height=0.7, color=colour, label=label)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    axes.set(xlabel="memory at the peak (MiB)", ylabel="partition", xlim=(0, MOST_MEMORY))
    axes.invert_yaxis()
    whole_numbers(axes.yaxis, plan.num_partitions)
    legend(axes)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model = build()
    for name, arguments in PLANS.items():
        wishes = {"schedule": "1f1b"} | arguments
        plan = hf.plan(model, batch_size=BATCH, num_ranks=4, costs="estimate", **wishes)
        print(f"{name}: {plan.step_seconds * 1e3:.0f} ms, idle {plan.idle_share:.1%}")
        draw(plan, FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()

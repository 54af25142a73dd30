"""Pictures of the benchmark."""

from pathlib import Path
from typing import Any

__all__ = ["draw"]


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write arrivals.png and latency.png, as far as there are results."""
    import matplotlib

    matplotlib.use("agg")
    if "arrivals" in results:
        _arrivals(results["arrivals"]["measured"], folder / "arrivals.png")
    if "latency" in results:
        _latency(results["latency"]["measured"]["gaps"], folder / "latency.png")


def _arrivals(found: dict[str, Any], path: Path) -> None:
    """Iterations over the mean gap between requests."""
    from matplotlib import pyplot, ticker

    rows = found["rows"]
    gaps = [row["gap"] for row in rows]
    means = [row["mean"] for row in rows]
    spread = [2 * row["deviation"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(32 * 512, color="grey", linestyle="--", linewidth=1)
    axes.annotate(
        "one request after the other: 16,384",
        (gaps[0], 32 * 512),
        (0, -12),
        textcoords="offset points",
        color="dimgrey",
    )
    axes.errorbar(
        gaps,
        means,
        yerr=spread,
        fmt="o-",
        capsize=4,
        label=f"hyparflow, mean of {found['seeds']} draws; bars are two standard deviations",
    )
    published = [row["published"] for row in rows]
    axes.plot(gaps, published, "x", color="C3", markersize=9, mew=2, label="Flover, one draw")
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(400, 22000),
        xlabel="mean time between two requests, ms",
        ylabel="iterations until all are done",
        title="32 requests for 512 tokens each, 11.3 ms an iteration",
    )
    axes.xaxis.set_major_locator(ticker.FixedLocator(gaps))
    axes.yaxis.set_major_locator(ticker.FixedLocator([500, 1000, 2000, 5000, 10000, 20000]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(0.01, 0.82), fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _latency(gaps: dict[str, Any], path: Path) -> None:
    """Live percentiles beside those of the virtual clock."""
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    titles = {"first": "until the first token, ms", "each": "from token to token, ms"}
    for axes, (name, title) in zip(both, titles.items(), strict=True):
        for place, gap in enumerate(gaps):
            entry = best(gaps[gap])
            for number, (kind, colour) in enumerate((("live", "C0"), ("predicted", "C1"))):
                middle, most = entry[kind][name]
                x = place + 0.36 * number - 0.18
                named = {"live": "served live", "predicted": "virtual clock"}[kind]
                axes.bar(x, most, 0.32, color=colour, alpha=0.35)
                axes.bar(x, middle, 0.32, color=colour, label=named if not place else None)
                axes.text(x, most, f"{most:.0f}", ha="center", va="bottom", fontsize=8)
                inside = {"ha": "center", "va": "top", "fontsize": 8, "color": "white"}
                axes.text(x, middle, f"{middle:.0f}", **inside)
        axes.set_xticks(range(len(gaps)), [f"{int(gap):,}" for gap in gaps])
        axes.set(xlabel="mean time between two requests, ms", title=title)
    both[0].legend(title="dark: half of the requests\npale: 99 percent of them", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def best(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in which the machine was quietest: costs differed least before and after."""
    return min(entries, key=lambda entry: abs(entry["drift"] - 1))

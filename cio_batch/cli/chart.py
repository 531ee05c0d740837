"""The chart of a tuning run: the only module that knows matplotlib, and imports it late."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cio_batch.cli.advice import Advice, by_flush_interval, heat_map
from cio_batch.cli.sweep import Measurement

SUFFIXES: Final = (".png", ".svg")


def is_possible() -> bool:
    """Whether the package that draws is there."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(path: Path, measurements: Sequence[Measurement], advice: Advice | None, max_age: float, title: str) -> None:
    """Write the chart, in the format that the file's name ends in.

    Args:
        path: Where to.
        measurements: What was measured.
        advice: What is marked in the map; ``None`` for no mark.
        max_age: Seconds that an event may have; a line among the ages.
        title: Above it.

    Raises:
        OSError: The file cannot be written.
    """
    # Figure without pyplot: no window, no state that outlives the chart.
    figure_of: Any = importlib.import_module("matplotlib.figure").Figure
    figure: Any = figure_of(figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    by_interval = by_flush_interval(measurements)
    plots: Any = figure.subplots(1, 2 if by_interval else 1, squeeze=False)[0]
    _draw_map(figure, plots[0], measurements, advice)
    if by_interval:
        _draw_ages(plots[1], by_interval, max_age)
    figure.savefig(path)


def _draw_map(figure: Any, plot: Any, measurements: Sequence[Measurement], advice: Advice | None) -> None:
    found = heat_map(measurements)
    cells = [[float("nan") if cell is None else cell for cell in row] for row in found.cells]
    image = plot.imshow(cells, origin="lower", aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=plot, label="events/s")
    plot.set(title="Full load", xlabel="batch size", ylabel="concurrency")
    plot.set_xticks(range(len(found.batch_sizes)), labels=[f"{size:,}" for size in found.batch_sizes])
    plot.set_yticks(range(len(found.concurrencies)), labels=[str(each) for each in found.concurrencies])
    most = max((cell for row in found.cells for cell in row if cell is not None), default=0.0)
    for row, columns in enumerate(found.cells):
        for column, cell in enumerate(columns):
            if cell is not None:
                color = "black" if cell > most * 0.6 else "white"  # viridis ends in yellow
                plot.text(column, row, f"{cell:,.0f}", ha="center", va="center", color=color, fontsize=8)
    if advice is not None:
        x, y = found.batch_sizes.index(advice.batch_size), found.concurrencies.index(advice.concurrency)
        plot.plot(x, y, "s", markersize=36, markerfacecolor="none", markeredgecolor="red", markeredgewidth=2)


def _draw_ages(plot: Any, measurements: Sequence[Measurement], max_age: float) -> None:
    intervals = [each.point.flush_interval for each in measurements]
    plot.plot(intervals, [each.p99_age for each in measurements], "o-", label="99 of 100 events")
    plot.plot(intervals, [each.p50_age for each in measurements], "o-", label="half of the events")
    plot.axhline(max_age, linestyle="--", color="red", label="wanted")
    plot.set(title=f"{measurements[0].point.event_rate:,.0f} events/s offered")
    plot.set(xlabel="flush interval (s)", ylabel="age at delivery (s)", ylim=(0, None))
    plot.legend()

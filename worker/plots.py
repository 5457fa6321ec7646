"""Drawings of figures as SVG without script or style of their own, each with the same figures as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import pygal
from markupsafe import Markup
from pygal.style import Style

LABELS, LABELS_LENGTH = 12, 80
"""At most so many labels are named under a plot, and at most so many characters together: more would run into each other."""


class Plot(msgspec.Struct, frozen=True):
    """A drawing, its legend, and the same figures as a table for those who cannot see it."""

    title: str
    svg: Markup
    legend: list[tuple[int, str]]
    """Number of the colour, and what has it."""
    columns: list[str]
    rows: list[list[str]]


def stacked(
    title: str,
    axis: str,
    labels: Sequence[str],
    figures: Mapping[tuple[str, str], int],
    colours: Sequence[tuple[int, str]],
    in_words: Callable[[int], str],
) -> Plot:
    """Figures by (label, series) as bars that stand on each other; `colours` are the series, with the number of their colour."""
    chart = pygal.StackedBar(**_LOOK, height=280, x_labels=list(labels), x_labels_major=_named(labels))
    chart.show_minor_x_labels = False
    chart.value_formatter = lambda value: in_words(round(value))
    series = [name for _, name in colours]
    for name in series:
        chart.add(name, [figures.get((label, name)) for label in labels])
    rows = [
        [label, *(in_words(figures[label, name]) if (label, name) in figures else "-" for name in series)]
        for label in labels
    ]
    return Plot(title, _svg(chart, title, colours), list(colours), [axis, *series], rows)


def _named(labels: Sequence[str]) -> list[str]:
    """The labels that stand under a plot, evenly apart, the newest among them."""
    fit = max(min(LABELS, LABELS_LENGTH // max(map(len, labels), default=1)), 1)
    return list(labels[:: -(-(-len(labels) // fit) or 1)])[::-1]


def bars(title: str, counts: Sequence[tuple[str, int]]) -> Plot | None:
    """Counts by name as horizontal bars, the first one on top; None where there is nothing to draw."""
    if not counts:
        return None
    chart = pygal.HorizontalBar(**_LOOK, height=60 + 30 * len(counts), x_labels=[name for name, _ in reversed(counts)])
    chart.y_labels = whole_steps(max(count for _, count in counts))
    chart.value_formatter = "{:,.0f}".format
    chart.add("", [count for _, count in reversed(counts)])
    rows = [[name, f"{count:,}"] for name, count in counts]
    return Plot(title, _svg(chart, title, [(0, "")]), [], [title, "count"], rows)


def whole_steps(most: int) -> list[int]:
    """Where lines are drawn: counts are whole, and so are the lines."""
    step = -(-most // 5) or 1
    return [step * tick for tick in range(6)]


_LOOK: Mapping[str, Any] = {
    "js": [],
    "disable_xml_declaration": True,
    "show_legend": False,
    "width": 720,
    "margin": 12,
    "style": Style(label_font_size=12, major_label_font_size=12),
    "truncate_label": -1,
    "max_scale": 6,
    "spacing": 8,
}


def _svg(chart: Any, title: str, colours: Sequence[tuple[int, str]]) -> Markup:
    """The drawing with nothing in it but shapes and words: no script, no link, no style of its own (the page's applies)."""

    def bare(root: Any) -> Any:
        for parent in list(root.iter()):
            for child in list(parent):
                tooltip = isinstance(child.tag, str) and "tooltip-overlay" in child.get("class", "")
                if not isinstance(child.tag, str) or child.tag == "defs" or tooltip:
                    parent.remove(child)
        root.attrib.pop("id", None)
        root.set("role", "img")
        root.find("title").text = title
        for number, (colour, name) in enumerate(colours):
            for series in (g for g in root.iter("g") if g.get("class", "").startswith(f"series serie-{number} ")):
                series.set("class", f"series colour-{colour}")
                for bar in (g for g in series.iter("g") if g.get("class") == "bar"):
                    _say_on_hover(bar, name)
        return root

    chart.add_xml_filter(bare)
    return Markup(chart.render())  # noqa: S704  # built as a tree: every word in it is escaped


def _say_on_hover(bar: Any, name: str) -> None:
    told = {child.get("class"): child.text or "" for child in bar.findall("desc")}
    words = " ".join(part for part in (told.get("x_label", ""), name) if part)
    shape = bar.find("rect")
    for child in bar.findall("desc"):
        bar.remove(child)
    title = shape.makeelement("title", {})
    title.text = f"{words}: {told.get('value', '')}"
    shape.append(title)

"""What a figure of matplotlib shows, as data."""

import datetime
import functools
import math

MOST_ELEMENTS = 10_000
MOST_TEXT = 1_000


def remember_pies(axes):
    """A pie keeps only the shares of its values: `axes` is told to keep the values too."""
    original = axes.Axes.pie

    @functools.wraps(original)
    def pie(self, x, *args, **kwargs):
        made = original(self, x, *args, **kwargs)
        try:
            self._nullspace_pie = [plain(value) for value in x]
        except Exception:
            self._nullspace_pie = None
        return made

    axes.Axes.pie = pie


def of_figure(figure):
    """The chart of a figure; several are elements of one `superchart`. None if nothing in it is known."""
    try:
        charts = [chart for chart in map(of_axes, figure.axes[:64]) if chart]
    except Exception:
        # Whatever cannot be read is shown as a picture all the same.
        return None
    if not charts:
        return None
    if len(charts) == 1:
        return charts[0]
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    return {"type": "superchart", "title": text(title), "x_label": "", "y_label": "", "elements": charts}


def of_axes(axes):
    for kind, find in (
        ("pie", pie),
        ("box_and_whisker", boxes),
        ("bar", bars),
        ("scatter", scatter),
        ("line", lines),
    ):
        elements = find(axes)
        if elements:
            return {
                "type": kind,
                "title": text(axes.get_title()),
                "x_label": text(axes.get_xlabel()),
                "y_label": text(axes.get_ylabel()),
                "x_unit": None,
                "y_unit": None,
                "elements": elements[:MOST_ELEMENTS],
            }
    return None


def pie(axes):
    wedges = [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]
    values = getattr(axes, "_nullspace_pie", None)
    if not values or len(values) != len(wedges):
        values = [abs(wedge.theta2 - wedge.theta1) / 360 for wedge in wedges]
    # matplotlib shows the labels as texts and may keep them from the wedges.
    shown = [label.get_text() for label in axes.texts][: len(wedges)]
    return [
        {"label": name_of(wedge.get_label()) or (shown[i] if i < len(shown) else ""), "value": value, "group": "default"}
        for i, (wedge, value) in enumerate(zip(wedges, values))
    ]


def bars(axes):
    elements = []
    for container in axes.containers:
        if type(container).__name__ != "BarContainer":
            continue
        across = getattr(container, "orientation", None) == "horizontal"
        ticks = tick_labels(axes.yaxis if across else axes.xaxis)
        for bar in container.patches[:MOST_ELEMENTS]:
            middle = bar.get_y() + bar.get_height() / 2 if across else bar.get_x() + bar.get_width() / 2
            value = bar.get_width() if across else bar.get_height()
            elements.append(
                {
                    "label": nearest(ticks, middle),
                    "value": plain(value),
                    "group": name_of(container.get_label()) or "default",
                }
            )
    return elements


def lines(axes):
    elements = []
    for line in axes.lines:
        group = name_of(line.get_label())
        xs, ys = line.get_xdata(orig=True), line.get_ydata(orig=True)
        for x, y in zip(list(xs)[:MOST_ELEMENTS], list(ys)[:MOST_ELEMENTS]):
            elements.append({"x": plain(x), "y": plain(y), "group": group})
    return elements


def scatter(axes):
    elements = []
    for collection in axes.collections:
        if type(collection).__name__ != "PathCollection":
            continue
        group = name_of(collection.get_label())
        for x, y in collection.get_offsets()[:MOST_ELEMENTS]:
            elements.append({"x": plain(x), "y": plain(y), "label": None, "group": group})
    return elements


def boxes(axes):
    """Every box is drawn as two whiskers, two caps and a median, in this order, whatever the box itself is."""
    elements = []
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[:MOST_ELEMENTS]]
    at = 0
    while at + 5 <= len(drawn):
        five = drawn[at : at + 5]
        found = box(axes, five, False) or box(axes, [(y, x) for x, y in five], True)
        if found:
            elements.append(found)
            at += 5
        else:
            at += 1
    return elements


def box(axes, five, across):
    if any(len(x) != 2 or len(y) != 2 for x, y in five):
        return None
    (low, high, cap_low, cap_high, median) = five
    upright = all(x[0] == x[1] == low[0][0] for x, _ in (low, high))
    flat = all(y[0] == y[1] for _, y in (cap_low, cap_high, median))
    joined = cap_low[1][0] == low[1][1] and cap_high[1][0] == high[1][1]
    if not (upright and flat and joined):
        return None
    ticks = tick_labels(axes.yaxis if across else axes.xaxis)
    return {
        "label": nearest(ticks, low[0][0]),
        "min": plain(low[1][1]),
        "q1": plain(low[1][0]),
        "median": plain(median[1][0]),
        "q3": plain(high[1][0]),
        "max": plain(high[1][1]),
        "group": "default",
    }


def tick_labels(axis):
    """The words on an axis, with where they stand."""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return [(place, label) for place, label in zip(axis.get_ticklocs(), labels) if label]


def nearest(ticks, place):
    """The word at a place; the place itself when there is none."""
    for at, label in ticks:
        if abs(at - place) < 0.26:
            return text(label)
    return str(plain(place))


def name_of(label):
    """A label that somebody gave; matplotlib's own begin with an underscore."""
    return text(label) if label and not str(label).startswith("_") else None


def text(value):
    return str(value)[:MOST_TEXT]


def plain(value):
    """A value that JSON has."""
    if value is None or isinstance(value, (bool, int, str)):
        return value[:MOST_TEXT] if isinstance(value, str) else value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if type(value).__name__ == "datetime64":
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return text(value)
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number

# Turns the figures of matplotlib into charts: a picture, and what it shows as data. Followed by the text of the
# program that runs the user's code, in one file.

import base64
import importlib.util
import io
import json
import math
import os
import sys
import weakref

# Most pairs of numbers told of one line or cloud, and most figures of one run.
_POINTS_MAX = 20_000
_FIGURES_MAX = 64


def _number(value):
    """A finite number that JSON can hold, else None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _numbers(values):
    return [number for number in map(_number, values) if number is not None]


def _points(xs, ys):
    import numpy

    xs, ys = (numpy.ma.array(values, dtype=float).filled(math.nan).tolist() for values in (xs, ys))
    found = [[x, y] for x, y in zip(xs, ys) if math.isfinite(x) and math.isfinite(y)]
    step = -(-len(found) // _POINTS_MAX) or 1
    return found[::step]


def _label(artist):
    """What its maker called it; matplotlib's own names begin with a line."""
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label


def _shortest(value):
    return str(int(value)) if value == int(value) else repr(value)


class _Charts:
    """Reads figures. Boxes and pies are noted as they are drawn, since a figure holds only their strokes."""

    def __init__(self, send):
        self.send = send
        self.sent = 0
        self.boxes = weakref.WeakKeyDictionary()
        self.shares = weakref.WeakKeyDictionary()
        self.pyplot = None

    def install(self, pyplot):
        """Takes the place of what shows figures in a window."""
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure

        self.pyplot = pyplot
        draw_boxes, draw_pie = Axes.bxp, Axes.pie

        def bxp(axes, bxpstats, *args, **kwargs):
            drawn = draw_boxes(axes, bxpstats, *args, **kwargs)
            self.boxes.setdefault(axes, []).extend(bxpstats)
            return drawn

        def pie(axes, *args, **kwargs):
            drawn = draw_pie(axes, *args, **kwargs)
            try:
                wedges, _, texts = drawn
                self.shares.setdefault(axes, {}).update(
                    (wedge, text.get_text()) for wedge, text in zip(wedges, texts)
                )
            except (TypeError, ValueError):
                pass  # A pie without percentages.
            return drawn

        Axes.bxp, Axes.pie = bxp, pie
        pyplot.show = lambda *args, **kwargs: self.show_all()
        Figure.show = lambda figure, *args, **kwargs: self.show(figure)

    def show_all(self):
        """Shows every figure that is open, and closes it as its window would be."""
        if self.pyplot is None:
            return
        for number in self.pyplot.get_fignums():
            self.show(self.pyplot.figure(number))

    def show(self, figure):
        """A figure that cannot be drawn says so and keeps no other from being shown."""
        try:
            if self.sent < _FIGURES_MAX:
                self.sent += 1
                self.send(json.dumps(self.read(figure), allow_nan=False))
        except Exception as error:
            print(f"cannot show a figure: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            self.pyplot.close(figure)

    def read(self, figure):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")  # Also decides the ticks.
        parts = [axes for axes in figure.get_axes() if axes.get_label() != "<colorbar>"]
        title = figure._suptitle.get_text() if figure._suptitle is not None else ""
        if len(parts) == 1:
            chart = self.read_axes(parts[0])
            chart["title"] = chart["title"] or title
        elif parts:
            elements = [self.read_axes(axes) for axes in parts]
            chart = {"type": "composite_chart", "title": title, "elements": elements}
        else:
            chart = {"type": "unknown", "title": title, "elements": []}
        chart["png"] = base64.b64encode(picture.getvalue()).decode()
        return chart

    def read_axes(self, axes):
        kind, elements = self.elements(axes)
        chart = {"type": kind, "title": axes.get_title(), "elements": elements}
        if kind == "pie" or axes.name != "rectilinear":
            return chart
        for side, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            ticks = [
                (place, label.get_text())
                for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels())
                if _number(place) is not None
            ]
            chart[side + "_label"] = axis.get_label_text()
            chart[side + "_ticks"] = [float(place) for place, _ in ticks]
            chart[side + "_tick_labels"] = [label for _, label in ticks]
            chart[side + "_scale"] = axis.get_scale()
        return chart

    def elements(self, axes):
        """What kind of chart this is, by what says most, and its data."""
        from matplotlib.collections import PathCollection
        from matplotlib.container import BarContainer
        from matplotlib.patches import Wedge

        if axes in self.boxes:
            return "box_and_whisker", [self.box(axes, n, box) for n, box in enumerate(self.boxes[axes])]
        wedges = [patch for patch in axes.patches if isinstance(patch, Wedge)]
        if wedges:
            return "pie", [self.wedge(axes, wedge) for wedge in wedges]
        bars = [group for group in axes.containers if isinstance(group, BarContainer)]
        if bars:
            return "bar", [element for group in bars for element in self.bars(axes, group)]
        clouds = [cloud for cloud in axes.collections if isinstance(cloud, PathCollection)]
        if clouds:
            clouds = ((cloud, cloud.get_offsets()) for cloud in clouds)
            return "scatter", [
                {"label": _label(cloud), "points": _points(places[:, 0], places[:, 1])}
                for cloud, places in clouds
            ]
        if axes.lines:
            return "line", [
                {"label": _label(line), "points": _points(line.get_xdata(False), line.get_ydata(False))}
                for line in axes.lines
            ]
        return "unknown", []

    def box(self, axes, number, box):
        label = str(box.get("label") or "")
        names = [text.get_text() for text in axes.get_xticklabels()]
        if not label and number < len(names):
            label = names[number]
        values = {
            "min": box.get("whislo"),
            "first_quartile": box.get("q1"),
            "median": box.get("med"),
            "third_quartile": box.get("q3"),
            "max": box.get("whishi"),
        }
        element = {name: _number(value) for name, value in values.items() if _number(value) is not None}
        fliers = box.get("fliers")
        element["outliers"] = _numbers([] if fliers is None else fliers)[:_POINTS_MAX]
        element["label"] = label
        return element

    def wedge(self, axes, wedge):
        element = {
            "label": _label(wedge),
            "angle": abs(_number(wedge.theta2 - wedge.theta1) or 0.0),
            "radius": _number(wedge.r) or 0.0,
        }
        share = self.shares.get(axes, {}).get(wedge)
        if share is not None:
            element["autopct"] = share
        return element

    def bars(self, axes, group):
        lying = getattr(group, "orientation", "vertical") == "horizontal"
        axis = axes.yaxis if lying else axes.xaxis
        names = {
            round(float(place), 6): text.get_text()
            for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels())
        }
        series = str(group.get_label() or "")
        for bar in group.patches:
            middle = bar.get_y() + bar.get_height() / 2 if lying else bar.get_x() + bar.get_width() / 2
            middle, length = _number(middle), _number(bar.get_width() if lying else bar.get_height())
            if middle is None or length is None:
                continue
            yield {
                "label": names.get(round(middle, 6)) or _shortest(middle),
                "group": "" if series.startswith("_") else series,
                "value": _shortest(length),
            }


class _Watch:
    """Waits for the first import of pyplot, so that code without figures pays nothing."""

    def __init__(self, charts):
        self.charts = charts

    def find_spec(self, name, path=None, target=None):
        if name != "matplotlib.pyplot":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_install(module):
            execute(module)
            self.charts.install(module)

        spec.loader.exec_module = execute_and_install
        return spec


def watch_for_figures(descriptor):
    """Sends each figure that is shown as a line to `descriptor`, from this process alone."""
    owner = os.getpid()

    def send(text):
        # Lines of several processes would mix.
        if os.getpid() != owner:
            return
        rest = memoryview(text.encode() + b"\n")
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    # Windows are of no use here, even where there is a screen.
    os.environ.setdefault("MPLBACKEND", "agg")
    charts = _Charts(send)
    sys.meta_path.insert(0, _Watch(charts))
    return charts

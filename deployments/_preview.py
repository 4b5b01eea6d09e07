"""A map of one field as PNG: quick to draw, without fonts or files that a machine may lack."""

from __future__ import annotations

import functools
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deployments._coastline import coastline
from workflows.dataset import variable_attributes

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

# The image has one palette: colours for values first, then greys from black to white for text and
# lines, which so keep their smooth edges. Indices compress well and need no conversion.
N_COLOURS, N_GREYS = 240, 15
FIRST_GREY, MISSING = N_COLOURS, N_COLOURS + N_GREYS
WHITE = FIRST_GREY + N_GREYS - 1
COAST, GRATICULE = FIRST_GREY + 3, FIRST_GREY + 8
MISSING_RGB = (150, 150, 158)

# Anchors of colour maps, evenly spaced. Their lightness runs one way, or to the middle and back:
# RdYlBu, RdBu and YlGnBu follow ColorBrewer 2.0, viridis Matplotlib's.
_MAPS = {
    "temperature": "313695 4575b4 74add1 abd9e9 e0f3f8 ffffbf fee090 fdae61 f46d43 d73027 a50026",
    "wind": "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f",
    "moisture": "fffde4 edf8b1 c7e9b4 7fcdbb 41b6c4 1d91c0 225ea8 253494 081d58",
    "height": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
}
_MIN_WIDTH, _MAX_WIDTH = 720, 1440
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 24, 40, 78
_TITLE_SIZE, _LABEL_SIZE = 17, 12


def render(field: Floats, variable: str, title: str) -> bytes:
    """Draw a field as a map.

    Parameters
    ----------
    field : ndarray, shape (lat, lon)
        Of the globe, from the north pole southwards, longitudes from -180. What is not a number
        shows grey, what is infinite as the end of the scale.
    variable : str
        Earth2Studio's name; decides the colours, the unit and the name under the colour bar.
    title : str
        Drawn above the map.

    Returns
    -------
    bytes
        PNG.
    """
    values = np.asarray(field)
    kind = _kind(variable)
    ticks, low, high = scale(values, symmetric=kind == "wind", positive=kind == "moisture")
    rows, columns = _nearest(*values.shape)
    coloured = _colour_indices(values, low, high)
    if (len(rows), len(columns)) != values.shape:
        coloured = coloured[rows[:, None], columns]
    height, width = coloured.shape

    canvas = np.full((height + _TOP + _BOTTOM, width + _LEFT + _RIGHT), WHITE, dtype=np.uint8)
    inside = canvas[_TOP : _TOP + height, _LEFT : _LEFT + width]
    inside[:] = coloured
    lines = _lines(height, width)
    inside[lines == 1] = GRATICULE
    inside[lines == 2] = COAST

    bar_top, bar = _TOP + height + 30, slice(_LEFT + width // 8, _LEFT + width - width // 8)
    length = bar.stop - bar.start
    canvas[bar_top : bar_top + 14, bar] = np.arange(length) * N_COLOURS // length
    _frame(canvas, _TOP, _LEFT, height, width)
    _frame(canvas, bar_top, bar.start, 14, length)

    texts = [(10.0, _TOP / 2, "lm", _TITLE_SIZE, title)]
    texts += _graticule_labels(height, width)
    for tick in ticks:
        x = bar.start + (tick - low) / (high - low) * (length - 1)
        canvas[bar_top + 14 : bar_top + 18, round(x)] = FIRST_GREY
        texts.append((x, bar_top + 26, "mm", _LABEL_SIZE, _number(tick, ticks)))
    texts.append((bar.stop + 8.0, bar_top + 7, "lm", _LABEL_SIZE, _unit(variable)))
    _write(canvas, texts)
    return _png(canvas, kind)


def scale(
    values: Floats, *, symmetric: bool = False, positive: bool = False
) -> tuple[list[float], float, float]:
    """Choose round tick values and the ends of a scale.

    Parameters
    ----------
    values : ndarray
        The rarest 0.5 % at either end may lie beyond the scale.
    symmetric : bool
        Centre the scale on zero.
    positive : bool
        Start it at zero, if nothing lies below.

    Returns
    -------
    tuple
        Ticks, lowest, highest value of the scale; lowest < highest always.
    """
    stride = max(1, math.isqrt(values.size // 65_536))
    sample = values[::stride, ::stride]
    sample = sample[np.isfinite(sample)]
    low, high = (float(q) for q in np.percentile(sample, (0.5, 99.5))) if sample.size else (0, 1)
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    elif positive and low >= 0:
        low = 0.0
    # Neighbours must stay apart in the arithmetic that follows, also around large constants.
    least = max(abs(low), abs(high)) * 1e-5 or 1.0
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((n * power for n in (1, 2, 2.5, 5) if n * power >= raw), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    # Half a step is room enough at the ends; a whole one would waste colours.
    low = first * step if low < (first + 0.5) * step else (first + 0.5) * step
    high = last * step if high > (last - 0.5) * step else (last - 0.5) * step
    slack = step * 1e-6
    ticks = [n * step for n in range(first, last + 1) if low - slack <= n * step <= high + slack]
    return ticks, low, high


def _kind(variable: str) -> str:
    unit = variable_attributes(variable).get("units", "")
    kinds = {"K": "temperature", "m s-1": "wind", "kg m-2": "moisture", "kg kg-1": "moisture"}
    return kinds.get(unit, "height")


def _unit(variable: str) -> str:
    return variable_attributes(variable).get("units", "")


def _number(tick: float, ticks: list[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
    largest = max(abs(ticks[0]), abs(ticks[-1]))
    if largest and (largest < 1e-3 or largest >= 1e7):
        return f"{tick:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(step) + 1e-9))
    text = f"{tick:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text if float(text) else "0"


def _colour_indices(values: Floats, low: float, high: float) -> Pixels:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.subtract(values, low, dtype=np.result_type(values, np.float32))
        scaled *= N_COLOURS / (high - low)
    missing = np.isnan(scaled)
    np.clip(scaled, 0, N_COLOURS - 1, out=scaled)
    if missing.any():
        scaled[missing] = MISSING
    return scaled.astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _nearest(n_lat: int, n_lon: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Give the row and column of the field that each row and column of the map shows."""
    width = min(max(n_lon, _MIN_WIDTH), _MAX_WIDTH)
    height = n_lat if n_lon == width and abs(n_lat - width / 2) <= 1 else width // 2 + 1
    rows = np.rint(np.linspace(0, n_lat - 1, height)).astype(np.intp)
    columns = np.floor(np.arange(width) * n_lon / width + 0.5).astype(np.intp) % n_lon
    return rows, columns


@functools.lru_cache(maxsize=8)
def _lines(height: int, width: int) -> Pixels:
    """Give a map's lines: 1 for the graticule, 2 for coasts."""
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for east in range(-150, 180, 30):
        x = (east + 180) / 360 * width
        draw.line([(x, 0), (x, height)], fill=1)
    for north in range(-60, 90, 30):
        y = (90 - north) / 180 * (height - 1)
        draw.line([(0, y), (width, y)], fill=1)
    for ring in coastline():
        across, down = (ring[:, 0] + 180) / 360 * width, (90 - ring[:, 1]) / 180 * (height - 1)
        points = list(zip(across.tolist(), down.tolist(), strict=True))
        for one, other in zip(points, points[1:], strict=False):
            # Where rings are closed along the date line or at the pole is no coast.
            if (
                not (one[0] == other[0] and one[0] in (0, width))
                and min(one[1], other[1]) < height - 2
            ):
                draw.line([one, other], fill=2)
    return np.asarray(image)


def _frame(canvas: Pixels, top: int, left: int, height: int, width: int) -> None:
    for row in (top - 1, top + height):
        canvas[row, left - 1 : left + width + 1] = FIRST_GREY
    for column in (left - 1, left + width):
        canvas[top - 1 : top + height + 1, column] = FIRST_GREY


Text = tuple[float, float, str, int, str]
"""x, y, anchor, size, words."""


def _graticule_labels(height: int, width: int) -> list[Text]:
    labels: list[Text] = []
    every = 30 if width >= 700 else 60
    for east in range(-180, 181, every):
        side = "" if east in (0, 180, -180) else "E" if east > 0 else "W"
        x = _LEFT + (east + 180) / 360 * width
        labels.append((x, _TOP + height + 12, "mm", _LABEL_SIZE, f"{abs(east)}°{side}"))
    for north in range(-90, 91, 30):
        side = "" if north == 0 else "N" if north > 0 else "S"
        y = _TOP + (90 - north) / 180 * (height - 1)
        labels.append((_LEFT - 6, y, "rm", _LABEL_SIZE, f"{abs(north)}°{side}"))
    return labels


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _write(canvas: Pixels, texts: list[Text]) -> None:
    """Write dark text into the margins, with smooth edges."""
    sheet = Image.new("L", canvas.shape[::-1], 255)
    draw = ImageDraw.Draw(sheet)
    for x, y, anchor, size, words in texts:
        draw.text((x, y), words, fill=0, font=_font(size), anchor=anchor)
    written = np.asarray(sheet)
    dark = written < 255
    canvas[dark] = FIRST_GREY + written[dark] // 18


@functools.cache
def _palette(kind: str) -> bytes:
    """Give red, green and blue of each of 256 indices."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _MAPS[kind].split()])
    at = np.linspace(0, len(anchors) - 1, N_COLOURS)
    colours = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    greys = np.linspace(20, 255, N_GREYS)
    everything = np.vstack([np.stack(colours, axis=1), np.stack([greys] * 3, axis=1), MISSING_RGB])
    return bytes(np.rint(everything).astype(np.uint8))


def _png(canvas: Pixels, kind: str) -> bytes:
    image = Image.fromarray(canvas)
    image.putpalette(_palette(kind))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()

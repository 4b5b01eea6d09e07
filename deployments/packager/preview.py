"""Draws a map of one field as PNG, quickly and without fonts or files that may be missing."""

from __future__ import annotations

import functools
import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deployments.packager.basemap import (
    COAST_LINE,
    GRATICULE_LINE,
    Basemap,
    global_basemap,
    regional_basemap,
    regular_basemap,
)
from workflows.dataset import variable_attributes
from workflows.grids import AnyGrid, Grid, LambertGrid

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

# The image has one palette: colours of values, then greys from black to white, so that text and
# lines keep smooth edges. Palette indices compress well and need no conversion.
N_COLOURS, N_GREYS = 240, 15
FIRST_GREY, MISSING = N_COLOURS, N_COLOURS + N_GREYS
WHITE = FIRST_GREY + N_GREYS - 1
COAST, GRATICULE = FIRST_GREY + 3, FIRST_GREY + 8
MISSING_RGB = (150, 150, 158)

# Evenly spaced anchors of colour maps: RdYlBu, RdBu and YlGnBu of ColorBrewer 2.0, and Matplotlib's
# viridis. Lightness is monotonic or symmetric about the middle.
_COLOUR_MAPS = {
    "temperature": "313695 4575b4 74add1 abd9e9 e0f3f8 ffffbf fee090 fdae61 f46d43 d73027 a50026",
    "wind": "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f",
    "moisture": "fffde4 edf8b1 c7e9b4 7fcdbb 41b6c4 1d91c0 225ea8 253494 081d58",
    "height": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
}
_KINDS = {"K": "temperature", "m s-1": "wind", "kg m-2": "moisture", "kg kg-1": "moisture"}
"""Colour map by unit; "height" for all others."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 24, 40, 78
_TITLE_SIZE, _LABEL_SIZE = 17, 12


class Text(NamedTuple):
    """Text in the margins."""

    x: float
    y: float
    anchor: str
    """Pillow's."""
    size: int
    content: str


def render(field: Floats, variable: str, title: str, grid: AnyGrid | None = None) -> bytes:
    """Draw a field as a map.

    Parameters
    ----------
    field : ndarray, shape (lat, lon) or (y, x)
        As it is stored. NaN is drawn grey, infinity as the end of the scale.
    variable : str
        Earth2Studio's name; determines colours and unit.
    title : str
        Drawn above the map.
    grid : Grid, LatLonGrid or LambertGrid, optional
        Grid of the field; by default a global one with both poles.

    Returns
    -------
    bytes
        PNG.
    """
    values = np.asarray(field)
    unit = variable_attributes(variable).get("units", "")
    kind = _KINDS.get(unit, "height")
    ticks, low, high = scale(values, symmetric=kind == "wind", positive=kind == "moisture")
    basemap = global_basemap(*values.shape) if grid is None else basemap_of(grid)
    indices = _colour_indices(values, low, high)
    if not basemap.is_identity:
        indices = indices[basemap.rows[:, None], basemap.columns]
    height, width = indices.shape

    canvas = np.full((height + _TOP + _BOTTOM, width + _LEFT + _RIGHT), WHITE, dtype=np.uint8)
    inside = canvas[_TOP : _TOP + height, _LEFT : _LEFT + width]
    inside[:] = indices
    inside[basemap.lines == GRATICULE_LINE] = GRATICULE
    inside[basemap.lines == COAST_LINE] = COAST

    bar_top, bar = _TOP + height + 30, slice(_LEFT + width // 8, _LEFT + width - width // 8)
    length = bar.stop - bar.start
    canvas[bar_top : bar_top + 14, bar] = np.arange(length) * N_COLOURS // length
    _frame(canvas, _TOP, _LEFT, height, width)
    _frame(canvas, bar_top, bar.start, 14, length)

    texts = [Text(10.0, _TOP / 2, "lm", _title_size(title, canvas.shape[1] - 20), title)]
    for label in basemap.labels:
        x, y = (label.position, height + 12.0) if label.is_below else (-6.0, label.position)
        anchor = "mm" if label.is_below else "rm"
        texts.append(Text(_LEFT + x, _TOP + y, anchor, _LABEL_SIZE, label.text))
    for tick in ticks:
        x = bar.start + (tick - low) / (high - low) * (length - 1)
        canvas[bar_top + 14 : bar_top + 18, round(x)] = FIRST_GREY
        texts.append(Text(x, bar_top + 26, "mm", _LABEL_SIZE, _format_tick(tick, ticks)))
    texts.append(Text(bar.stop + 8.0, bar_top + 7, "lm", _LABEL_SIZE, unit))
    _draw_texts(canvas, texts)
    return _png(canvas, kind)


def basemap_of(grid: AnyGrid) -> Basemap:
    """Return the basemap of a grid."""
    if isinstance(grid, LambertGrid):
        return regional_basemap(grid)
    return global_basemap(*grid.shape) if isinstance(grid, Grid) else regular_basemap(grid)


def scale(
    values: Floats, *, symmetric: bool = False, positive: bool = False
) -> tuple[list[float], float, float]:
    """Return round tick values and the ends of a scale.

    Parameters
    ----------
    values : ndarray
        The lowest and the highest 0.5 % may be outside of the scale.
    symmetric : bool
        Centre the scale on zero.
    positive : bool
        Start the scale at zero unless values are negative.

    Returns
    -------
    tuple
        Ticks, lowest and highest value of the scale; lowest < highest.
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
    # Rounding must not merge neighbouring ticks of a nearly constant field.
    least = max(abs(low), abs(high)) * 1e-5 or 1.0
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    target = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(target))
    step = next((n * power for n in (1, 2, 2.5, 5) if n * power >= target), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    # The ends are rounded to half steps: full steps would waste colours.
    low = first * step if low < (first + 0.5) * step else (first + 0.5) * step
    high = last * step if high > (last - 0.5) * step else (last - 0.5) * step
    slack = step * 1e-6
    ticks = [n * step for n in range(first, last + 1) if low - slack <= n * step <= high + slack]
    return ticks, low, high


def _format_tick(tick: float, ticks: list[float]) -> str:
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


def _frame(canvas: Pixels, top: int, left: int, height: int, width: int) -> None:
    for row in (top - 1, top + height):
        canvas[row, left - 1 : left + width + 1] = FIRST_GREY
    for column in (left - 1, left + width):
        canvas[top - 1 : top + height + 1, column] = FIRST_GREY


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _title_size(title: str, width: int) -> int:
    """Return the size at which a title fits: it says at its end if the data are synthetic."""
    size = _TITLE_SIZE
    while size > _LABEL_SIZE and _font(size).getlength(title) > width:
        size -= 1
    return size


def _draw_texts(canvas: Pixels, texts: list[Text]) -> None:
    image = Image.new("L", canvas.shape[::-1], 255)
    draw = ImageDraw.Draw(image)
    for text in texts:
        position = (text.x, text.y)
        draw.text(position, text.content, fill=0, font=_font(text.size), anchor=text.anchor)
    brightness = np.asarray(image)
    is_text = brightness < 255
    canvas[is_text] = FIRST_GREY + brightness[is_text] // 18


@functools.cache
def _palette(kind: str) -> bytes:
    """Return red, green and blue of all 256 palette indices."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _COLOUR_MAPS[kind].split()])
    positions = np.linspace(0, len(anchors) - 1, N_COLOURS)
    channels = [np.interp(positions, np.arange(len(anchors)), channel) for channel in anchors.T]
    greys = np.linspace(20, 255, N_GREYS)
    palette = np.vstack([np.stack(channels, axis=1), np.stack([greys] * 3, axis=1), MISSING_RGB])
    return bytes(np.rint(palette).astype(np.uint8))


def _png(canvas: Pixels, kind: str) -> bytes:
    image = Image.fromarray(canvas)
    image.putpalette(_palette(kind))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()

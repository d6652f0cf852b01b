"""The picture of the ``image`` target, drawn by formulas: a flame over the equation on Boltzmann's grave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLAMES", "PIXELS", "PIXELS_PER_UNIT", "STROKES", "STROKE_RADIUS", "draw_picture"]

PIXELS = 700
PIXELS_PER_UNIT = 100
STROKE_RADIUS = 0.085

FLAMES: tuple[tuple[float, float, float, float, float, float], ...] = (
    (0.0, -1.75, 4.95, 1.45, 0.42, 0.0),
    (-1.05, -1.55, 2.9, 0.75, -0.30, 0.0),
    (1.1, -1.55, 3.1, 0.75, 0.30, 0.0),
    (0.02, -1.6, 3.1, 0.9, 0.25, 0.55),
    (0.0, -1.5, 1.7, 0.5, 0.12, 1.0),
)
"""Tongues of flame, later ones over earlier ones: x and y of the base, height, width, lean and grey (0 is black)."""

Point = tuple[float, float]


def _arc(x: float, y: float, radius_x: float, radius_y: float, start: float, stop: float) -> list[Point]:
    """An arc of an ellipse, from one angle to another in degrees."""
    angles = np.radians(np.linspace(start, stop, 25))
    return [(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles]


_LINE = -3.05

STROKES: tuple[list[Point], ...] = (
    _arc(-2.65, _LINE + 0.72, 0.24, 0.23, 20, 270) + _arc(-2.65, _LINE + 0.24, 0.26, 0.25, 89, -160),
    [(-2.1, _LINE + 0.34), (-1.65, _LINE + 0.34)],
    [(-2.1, _LINE + 0.62), (-1.65, _LINE + 0.62)],
    [(-1.25, _LINE), (-1.25, _LINE + 0.98)],
    [(-0.83, _LINE + 0.62), (-1.22, _LINE + 0.27)],
    [(-1.08, _LINE + 0.4), (-0.8, _LINE)],
    [(-0.18, _LINE), (-0.18, _LINE + 0.98)],
    _arc(0.24, _LINE + 0.3, 0.24, 0.3, 0, 360),
    _arc(0.88, _LINE + 0.3, 0.23, 0.3, 0, 360),
    [(1.11, _LINE + 0.6), (1.11, _LINE - 0.05), *_arc(0.88, _LINE - 0.05, 0.23, 0.22, -5, -150)],
    [(1.65, _LINE + 0.98), (1.9, _LINE), (2.2, _LINE + 0.75), (2.5, _LINE), (2.75, _LINE + 0.98)],
)
"""The letters of S = k log W, as lines through points."""


def draw_picture() -> NDArray[np.float64]:
    """The grey picture, ``(700, 700)``: 0 is black and 1 white; the first row is the top, as in image files.

    >>> picture = draw_picture()
    >>> picture.shape, sorted(set(picture.flatten().tolist()))
    ((700, 700), [0.0, 0.55, 1.0])
    """
    axis = (np.arange(PIXELS) + 0.5 - PIXELS / 2) / PIXELS_PER_UNIT
    x, y = np.meshgrid(axis, -axis)
    picture = np.ones_like(x)
    for base_x, base_y, height, width, lean, grey in FLAMES:
        h = np.clip((y - base_y) / height, 0.0, 1.0)
        half_width = 1.72 * width * np.sqrt(h) * (1.0 - h) ** 1.15
        middle = base_x + lean * h**1.5 * np.sin(2.6 * np.pi * h)
        picture[np.abs(x - middle) < half_width] = grey
    for stroke in STROKES:
        _draw_stroke(picture, x, y, stroke)
    return picture


def _draw_stroke(
    picture: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], points: Sequence[Point]
) -> None:
    """Blacken what lies within the radius of a pen that is drawn through the points."""
    low, high = np.min(points, 0) - STROKE_RADIUS, np.max(points, 0) + STROKE_RADIUS
    columns = slice(_pixel(low[0]), _pixel(high[0]) + 1)
    rows = slice(_pixel(-high[1]), _pixel(-low[1]) + 1)
    x, y, part = x[rows, columns], y[rows, columns], picture[rows, columns]
    for (x0, y0), (x1, y1) in pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        part[np.hypot(x - x0 - along * dx, y - y0 - along * dy) < STROKE_RADIUS] = 0.0


def _pixel(coordinate: float) -> int:
    return int(coordinate * PIXELS_PER_UNIT + PIXELS / 2)

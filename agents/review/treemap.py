"""Squarified treemap: rectangles whose areas are proportional to sizes and whose shapes are as square as possible.

Source: Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; the units are the caller's."""

    left: float
    top: float
    width: float
    height: float


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Fill `box` with one rectangle for each size.

    Args:
        sizes: Positive, largest first.
        box: The area to fill.

    Returns:
        The rectangles, in the order of `sizes`.
    """
    total = sum(sizes)
    if not sizes or total <= 0 or box.width <= 0 or box.height <= 0:
        return [Box(box.left, box.top, 0.0, 0.0) for _ in sizes]
    scale = box.width * box.height / total
    areas = [size * scale for size in sizes]
    boxes: list[Box] = []
    start = 0
    while start < len(areas):
        side = min(box.width, box.height)
        end, row_area = _best_row(areas, start, side)
        row = areas[start:end]
        is_last = end == len(areas)
        placed, box = _place(row, row_area, box, is_last)
        boxes.extend(placed)
        start = end
    return boxes


def _best_row(areas: Sequence[float], start: int, side: float) -> tuple[int, float]:
    """How far the next row goes: until one more rectangle would make its worst shape worse."""
    end, row_area = start + 1, areas[start]
    while end < len(areas):
        grown = row_area + areas[end]
        if _worst(areas[start], areas[end], grown, side) > _worst(areas[start], areas[end - 1], row_area, side):
            break
        end, row_area = end + 1, grown
    return end, row_area


def _worst(largest: float, smallest: float, row_area: float, side: float) -> float:
    thickness = row_area / side if side else 0.0
    square = thickness * thickness
    return max(largest / square, square / smallest) if square and smallest else float("inf")


def _place(row: Sequence[float], row_area: float, box: Box, is_last: bool) -> tuple[list[Box], Box]:
    """Lay a row along the shorter side of `box`; returns its rectangles and what is left of the box."""
    placed, offset = [], 0.0
    if box.width >= box.height:
        thickness = box.width if is_last else row_area / box.height
        for area in row:
            length = box.height * area / row_area
            placed.append(Box(box.left, box.top + offset, thickness, length))
            offset += length
        return placed, Box(box.left + thickness, box.top, max(box.width - thickness, 0.0), box.height)
    thickness = box.height if is_last else row_area / box.width
    for area in row:
        length = box.width * area / row_area
        placed.append(Box(box.left + offset, box.top, length, thickness))
        offset += length
    return placed, Box(box.left, box.top + thickness, box.width, max(box.height - thickness, 0.0))

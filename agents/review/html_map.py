"""The complexity map of `review.html`: every file as a rectangle, grouped by folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from agentmesh.agents.review.model import FileReview
from agentmesh.agents.review.treemap import Box, squarify

_MAP_WIDTH, _MAP_HEIGHT = 1200.0, 520.0
_MAP_FILES = 1200
"""More rectangles than this are smaller than a pixel; the smallest files are left out of the map, not of the tables."""
_BANDS = (5, 10, 20, 30, 50)
"""Upper limits of the colours."""


@dataclass(frozen=True, slots=True)
class _Cell:
    path: str
    size: int
    complexity: int
    worst: str


def render_map(reviews: Sequence[FileReview]) -> str:
    tiles = sorted((_cell(review) for review in reviews), key=lambda tile: (-tile.size, tile.path))[:_MAP_FILES]
    if not tiles:
        return ""
    folders: defaultdict[str, list[_Cell]] = defaultdict(list)
    depth = _common_depth(tiles)
    for tile in tiles:
        parts = tile.path.split("/")[:-1]
        folders["/".join(parts[: depth + 1]) or "."].append(tile)
    ordered = sorted(folders.items(), key=lambda item: (-sum(tile.size for tile in item[1]), item[0]))
    sizes = [sum(tile.size for tile in group) for _, group in ordered]
    boxes = squarify(sizes, Box(0, 0, _MAP_WIDTH, _MAP_HEIGHT))
    groups = "".join(_group_html(name, group, box) for (name, group), box in zip(ordered, boxes, strict=True))
    return f"""<section aria-labelledby="map-title">
<h2 id="map-title">Complexity map</h2>
<p class="muted">One rectangle for each file: its area is the number of lines,
its colour the most complex function in it. Click one to see its findings; the table below holds the same numbers.</p>
{_legend()}
<div class="map" role="img" aria-label="Treemap of {len(tiles):,} files by size and complexity">{groups}</div>
</section>"""


def _cell(review: FileReview) -> _Cell:
    worst = review.worst_function
    size = max(review.metrics.code_lines or review.metrics.lines, 1)
    return _Cell(review.path, size, worst.complexity if worst else 0, worst.qualified_name if worst else "")


def _common_depth(tiles: Sequence[_Cell]) -> int:
    """How many folders all files share (`src/package/`): grouping by them would make one group."""
    folders = [tile.path.split("/")[:-1] for tile in tiles]
    depth = 0
    for names in zip(*folders, strict=False):
        if len(set(names)) > 1:
            break
        depth += 1
    return depth


def _group_html(name: str, tiles: Sequence[_Cell], box: Box) -> str:
    inner = Box(0, 0, box.width, box.height)
    boxes = squarify([tile.size for tile in tiles], inner)
    cells = "".join(_cell_html(tile, cell, box) for tile, cell in zip(tiles, boxes, strict=True))
    label = f"<b>{escape(name)}</b>" if box.width > 70 and box.height > 40 else ""
    return f'<div class="group" style="{_percent(box, _MAP_WIDTH, _MAP_HEIGHT)}">{cells}{label}</div>'


def _cell_html(tile: _Cell, cell: Box, group: Box) -> str:
    band = sum(tile.complexity > limit for limit in _BANDS)
    name = tile.path.rsplit("/", 1)[-1]
    label = f"<span>{escape(name)}</span>" if cell.width > 56 and cell.height > 30 else ""
    detail = f"worst: {tile.worst}, {tile.complexity}" if tile.worst else "no functions"
    title = escape(f"{tile.path} · {tile.size:,} lines · {detail}")
    style = _percent(cell, group.width, group.height)
    return f'<div class="cell c{band}" style="{style}" title="{title}" data-path="{escape(tile.path)}">{label}</div>'


def _percent(box: Box, width: float, height: float) -> str:
    def share(part: float, whole: float) -> str:
        return f"{100 * part / whole if whole else 0:.3f}%"

    return (
        f"left:{share(box.left, width)};top:{share(box.top, height)};"
        f"width:{share(box.width, width)};height:{share(box.height, height)}"
    )


def _legend() -> str:
    lower = (0, *(limit + 1 for limit in _BANDS))
    labels = [f"{low} – {high}" for low, high in zip(lower, _BANDS, strict=False)] + [f"over {_BANDS[-1]}"]
    items = "".join(f'<li><i class="c{band}"></i>{label}</li>' for band, label in enumerate(labels))
    return f'<ul class="legend" aria-label="Complexity of the worst function">{items}</ul>'

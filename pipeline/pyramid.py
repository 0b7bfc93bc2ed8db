"""Nearest neighbours among concatenated feature pyramids, exactly, without concatenating them.

A deeper layer repeated over the first one's grid has one value for a whole cell of positions, and a squared distance
of concatenated features is the sum of the layers' own. So the distances of all layers but the first are taken once a
pair of cells; they bound the whole from below. The first layer's, the dearest, are taken only for cells whose bound
is below the best match found so far.
"""

from itertools import pairwise

import torch
from torch import Tensor

from pipeline.data import Size
from pipeline.neighbours import nearest

_BLOCK_BYTES = 64 << 20
_FIRST_CELLS = 16  # tried before the first look at the bound; then eight times as many


def squared_distances(query: list[Tensor], gallery: list[Tensor], k: int = 1, *, window: int = 0) -> Tensor:
    """Squared distances from each position of a picture to its k nearest positions in others.

    Features are the layers' values, deeper layers repeated (nearest) to the first one's grid h x w.

    Args:
        query: by layer, (C, h_l, w_l) float32, the first at the finest grid.
        gallery: by layer, (N, C, h_l, w_l) float32.
        k: how many, at most `matches_min` for each of the N pictures.
        window: how many cells of the second layer's grid a match may be away; 0 for any number. With one layer, or
            where a grid is no multiple of the next, cells are positions, and the search is the plain one.

    Returns:
        (h, w, k) float32, nearest first; correct to rounding of sums of squares about the gallery's mean.
    """
    # Rounding grows with the values' size, and distances do not change about another origin.
    origin = [each.mean(dim=(0, 2, 3)) for each in gallery]
    query = [each - o.view(-1, 1, 1) for each, o in zip(query, origin, strict=True)]
    gallery = [each - o.view(-1, 1, 1) for each, o in zip(gallery, origin, strict=True)]
    cells = _cells_of([(each.shape[1], each.shape[2]) for each in query])
    return _by_cells(query, gallery, k, window, cells) if cells else _by_positions(query, gallery, k, window)


def matches_min(grids: list[Size], window: int) -> int:
    """How many positions of one picture each position may at least match: those that a corner has in its window."""
    height, width = grids[0]
    rows, columns = _cells_of(grids) or grids[0]
    near = (min(rows, window + 1), min(columns, window + 1)) if window else (rows, columns)
    return near[0] * near[1] * (height // rows) * (width // columns)


def _cells_of(grids: list[Size]) -> Size | None:
    """The second layer's grid, if each is a multiple of the next."""
    nested = all(a % b == 0 for finer, coarser in pairwise(grids) for a, b in zip(finer, coarser, strict=True))
    return grids[1] if len(grids) > 1 and nested else None


def _by_positions(query: list[Tensor], gallery: list[Tensor], k: int, window: int) -> Tensor:
    """The plain way: features concatenated, every position against every other."""
    grid = (query[0].shape[1], query[0].shape[2])
    rows = torch.cat([_repeated(each, grid) for each in query]).flatten(1).T.contiguous()
    bank = torch.cat([_repeated(each, grid) for each in gallery], dim=1).flatten(2).transpose(1, 2)
    if not window:
        return nearest(rows, bank.reshape(-1, rows.shape[1]), k)[0].view(*grid, k)
    distances = torch.cat([torch.cdist(rows, each).square() for each in bank], dim=1)
    distances.masked_fill_(~_near(grid, window, rows.device).repeat(1, len(bank)), torch.inf)
    return distances.topk(k, dim=1, largest=False).values.view(*grid, k)


def _by_cells(query: list[Tensor], gallery: list[Tensor], k: int, window: int, cells: Size) -> Tensor:
    """Cells of the second layer's grid, each of `inside` positions of the first's."""
    height, width = query[0].shape[1:]
    fine, bank = _celled(query[0].unsqueeze(0), cells), _celled(gallery[0], cells)
    norms = bank.square().sum(dim=2)  # (M, inside)
    out = fine.new_empty(len(fine), fine.shape[1], k)
    step = max(1, _BLOCK_BYTES // (8 * len(bank)))
    for at in range(0, len(fine), step):
        part = torch.arange(at, min(at + step, len(fine)), device=fine.device)
        bound = _coarse(query[1:], gallery[1:], cells, part)
        if window:
            near = _near(cells, window, fine.device)[part]
            bound.masked_fill_(~near.repeat(1, len(gallery[0])), torch.inf)
        out[part] = _search(fine[part], bank, norms, bound, k)
    across = width // cells[1]
    tiles = out.view(*cells, height // cells[0], across, k)
    return tiles.permute(0, 2, 1, 3, 4).reshape(height, width, k)


def _coarse(query: list[Tensor], gallery: list[Tensor], cells: Size, part: Tensor) -> Tensor:
    """Sums over the deeper layers of squared distances between the cells `part` and all the gallery's: (P, M)."""
    total = torch.zeros(())
    count = len(gallery[0])
    for mine, theirs in zip(query, gallery, strict=True):
        grid = (mine.shape[1], mine.shape[2])
        # Where each cell is a position of its own nothing is looked up, and a GPU is not waited for.
        place = None if grid == cells else _places(grid, cells).to(mine.device)
        wanted, of_cell = (part, slice(None)) if place is None else torch.unique(place[part], return_inverse=True)
        rows, bank = mine.flatten(1).T[wanted], theirs.flatten(2).transpose(1, 2).reshape(-1, mine.shape[0])
        distances = torch.addmm(bank.square().sum(dim=1).unsqueeze(0), rows, bank.T, alpha=-2)
        distances += rows.square().sum(dim=1, keepdim=True)
        if place is not None:
            images = torch.arange(count, device=place.device).unsqueeze(1) * (grid[0] * grid[1])
            distances = distances[:, (images + place).flatten()]
        total = total + distances[of_cell]
    return total


def _search(fine: Tensor, bank: Tensor, norms: Tensor, bound: Tensor, k: int) -> Tensor:
    """The k least of bound + first layer's distance, for every position of every cell.

    Args:
        fine: (P, inside, C), the query's cells.
        bank: (M, inside, C), the gallery's.
        norms: (M, inside), squared.
        bound: (P, M), of the deeper layers.
        k: how many.

    Returns:
        (P, inside, k).
    """
    inside, channels = fine.shape[1:]
    best = fine.new_full((len(fine), inside, k), torch.inf)
    own = fine.square().sum(dim=2)
    open_ = torch.arange(len(fine), device=fine.device)
    cells = _FIRST_CELLS
    while len(open_):
        cells = min(max(cells, k), len(bank))
        wide = min(cells + 1, len(bank))
        bounds, order = bound[open_].topk(wide, dim=1, largest=False)
        step = max(1, _BLOCK_BYTES // (4 * cells * inside * channels))
        for at in range(0, len(open_), step):
            rows = open_[at : at + step]
            chosen, least = order[at : at + step, :cells], bounds[at : at + step, :cells]
            theirs = bank[chosen.reshape(-1)].view(len(rows), -1, channels)
            cross = torch.bmm(fine[rows], theirs.transpose(1, 2))
            rest = (norms[chosen] + least.unsqueeze(2)).view(len(rows), 1, -1)
            whole = (rest - 2 * cross + own[rows].unsqueeze(2)).clamp_(min=0)
            best[rows] = whole.topk(k, dim=2, largest=False).values
        if cells == len(bank):
            break
        open_ = open_[bounds[:, cells] < best[open_].amax(dim=(1, 2))]
        cells *= 8
    return best


def _celled(maps: Tensor, cells: Size) -> Tensor:
    """(N, C, h, w) -> (N rows columns, inside, C): the positions of each cell together."""
    n, c, height, width = maps.shape
    rows, columns = cells
    split = maps.view(n, c, rows, height // rows, columns, width // columns)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(n * rows * columns, -1, c)


def _places(grid: Size, cells: Size) -> Tensor:
    """Which position of `grid` each cell lies in, nearest, as torch's interpolation has it: (rows columns,)."""
    rows, columns = (torch.arange(n) * have // n for n, have in zip(cells, grid, strict=True))
    return (rows.unsqueeze(1) * grid[1] + columns).flatten()


def _repeated(maps: Tensor, grid: Size) -> Tensor:
    """(..., C, h, w) -> (..., C, *grid)."""
    place = _places((maps.shape[-2], maps.shape[-1]), grid).to(maps.device)
    return maps.flatten(-2)[..., place].view(*maps.shape[:-2], *grid)


def _near(grid: Size, window: int, device: torch.device) -> Tensor:
    """Whether two positions of a grid are at most `window` apart, down and across: (P, P)."""
    rows, columns = (torch.arange(n, device=device) for n in grid)
    down = (rows.unsqueeze(1) - rows).abs() <= window
    across = (columns.unsqueeze(1) - columns).abs() <= window
    return (down[:, None, :, None] & across[None, :, None, :]).view(grid[0] * grid[1], -1)

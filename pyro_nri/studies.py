"""Studies: the same question put to many settings, whose answers are one table that can be stopped and resumed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pyro_nri.posterior.frames import read_frame, write_frame

#: One setting of a study: columns that all of its rows have in common, plain str, bool, int or float.
Cell = dict[str, Any]


def run_cells(
    path: str | Path, wanted: list[Cell], work: Callable[[Cell], list[Cell]], *, jobs: int = 1, unit: str = "cell"
) -> pd.DataFrame:
    """Run the cells that the table at ``path`` lacks; it is written anew whenever one is finished.

    A cell is finished if some row of the table agrees with it in all its columns. Rows of other cells stay.

    Args:
        path: where the table is, or will be: ``.csv`` or ``.parquet``.
        wanted: the cells, in the order in which they are run.
        work: rows of a cell, each with the cell's own columns; none where it failed and is to be tried again. With
            several jobs it must be a function of a module, or a ``functools.partial`` of one.
        jobs: cells at a time, each in a process of its own; 1: in this one.
        unit: what the progress bar calls a cell.

    Returns:
        The rows of the wanted cells, in their order.

    Raises:
        ValueError: the table cannot be read or written.

    Example:
        >>> import tempfile
        >>> square = lambda cell: [{**cell, "square": cell["x"] ** 2}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = run_cells(f"{folder}/squares.csv", [{"x": 2}], square)
        ...     found = run_cells(f"{folder}/squares.csv", [{"x": 3}, {"x": 2}], square)  # runs 3 alone
        >>> found["square"].tolist()
        [9, 4]
    """
    path = Path(path)
    kept: list[Cell] = read_frame(path).to_dict("records") if path.exists() else []  # type: ignore[assignment]
    missing = [cell for cell in wanted if not any(cell.items() <= row.items() for row in kept)]
    rows, done = kept, dict[int, list[Cell]]()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext() as pool:
        found = _as_finished(pool, work, missing) if pool else enumerate(map(work, missing))
        for place, some in tqdm(found, total=len(wanted), initial=len(wanted) - len(missing), unit=unit):
            done[place] = some
            rows = kept + [row for place in sorted(done) for row in done[place]]
            if rows:
                write_frame(pd.DataFrame(rows), path)
    return pd.DataFrame([row for cell in wanted for row in rows if cell.items() <= row.items()])


def _as_finished(
    pool: Executor, work: Callable[[Cell], list[Cell]], cells: list[Cell]
) -> Iterator[tuple[int, list[Cell]]]:
    """Places of the cells and their rows, the first to finish first: a slow cell keeps no other waiting."""
    places, failure = {pool.submit(work, cell): place for place, cell in enumerate(cells)}, None
    try:
        for future in as_completed(places):
            if future.cancelled():
                continue
            if (error := future.exception()) is None:
                yield places[future], future.result()
            elif failure is None:
                failure = error
                for other in places:  # what has not begun; what is being worked on is kept
                    other.cancel()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

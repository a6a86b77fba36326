"""How files are written: beside the wanted name first, then renamed, so that a killed run leaves no half file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to ``path`` when the block ends well, else delete it.

    Missing folders are made.

    Raises:
        ValueError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_beside(Path(folder) / "new" / "table.csv") as beside:
        ...         _ = beside.write_text("a,b")
        ...     (Path(folder) / "new" / "table.csv").read_text()
        'a,b'
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    try:
        yield beside
        try:
            os.replace(beside, path)
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)

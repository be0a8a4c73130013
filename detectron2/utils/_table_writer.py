"""A writer of comma-separated values, for spreadsheets and data frames."""

import csv
import io
import os
from typing import Any

from detectron2.utils._event_storage import get_event_storage
from detectron2.utils._event_writers import EventWriter, _NewScalars
from detectron2.utils.file_io import PathManager, atomic_write

__all__ = ["CSVWriter"]


class CSVWriter(EventWriter):
    """Appends scalars to a table: a row for each iteration that was written, a column for each scalar.

    The first column is ``iteration``. A scalar that comes up later, such as a metric of the first evaluation, becomes a
    new last column; the file is then written anew. A table of an earlier part of the run is continued.

    Args:
        csv_file: path of the file; it is made by the first write.
        window_size: iterations over which noisy scalars are smoothed (median).
    """

    def __init__(self, csv_file: str | os.PathLike, window_size: int = 20):
        self._path = os.fspath(csv_file)
        self._new = _NewScalars(window_size)
        self._columns: list[str] | None = None  # None: the file has not been looked at

    def write(self) -> None:
        """Append one row for each iteration that has new scalars."""
        rows: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in self._new.take(get_event_storage()).items():
            rows.setdefault(iteration, {})[name] = value
        if not rows:
            return
        if self._columns is None:
            self._columns = self._continue_file()
        names = dict.fromkeys(name for iteration in sorted(rows) for name in sorted(rows[iteration]))
        added = [name for name in names if name not in self._columns]
        if added:
            self._add_columns(added)
        text = io.StringIO()
        table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        table.writerows({"iteration": iteration, **rows[iteration]} for iteration in sorted(rows))
        file: Any = PathManager.open(self._path, "a")
        with file:
            file.write(text.getvalue())

    def _read(self) -> str:
        if not PathManager.exists(self._path):
            return ""
        with PathManager.open(self._path, "r") as file:
            return str(file.read())

    def _continue_file(self) -> list[str]:
        """-> the columns of the file that is there; a last row that was cut off is removed."""
        text = self._read()
        if not text:
            return ["iteration"]
        if not text.endswith("\n"):
            with atomic_write(self._path, "w") as file:
                file.write(text[: text.rfind("\n") + 1])
        columns = next(csv.reader(io.StringIO(text)))
        if columns[:1] != ["iteration"]:
            raise ValueError(f"{self._path} is not a table of this writer: its first column is {columns[:1]}.")
        return columns

    def _add_columns(self, names: list[str]) -> None:
        """Write the file anew with more columns, empty in the rows that are there."""
        assert self._columns is not None, "columns are added to a file that was looked at"
        old = list(csv.DictReader(io.StringIO(self._read())))
        self._columns = [*self._columns, *names]
        with atomic_write(self._path, "w") as file:
            table = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(old)

"""Read a table from a CSV, Parquet or libsvm file, or say in one sentence why not."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.datasets import load_svmlight_file

from dargmin.studies.errors import DataError

__all__ = ["DataError", "read_table"]

_LIBSVM_ROW = re.compile(r"^\s*[-+.\w]+(\s+qid:\d+)?(\s+\d+:\S+)+\s*(#.*)?$")
_LARGEST_DENSE = 200_000_000  # entries: 1.6 GB of float64


def read_table(path: Path) -> tuple[pd.DataFrame, str | None]:
    """Read a file into a table; its format is recognised by its contents, not by its name.

    Parameters
    ----------
    path : Path
        A CSV file with a header line (separated by comma, semicolon or tab), a Parquet file, or a
        libsvm file (`target index:value index:value ...`).

    Returns
    -------
    table : DataFrame
    target : str or None
        The name of the target column where the format says it (libsvm), else None.

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read, is empty or is malformed."""
    head = _first_bytes(path)
    if head.startswith(b"PAR1"):
        return _read_parquet(path), None
    if path.suffix.lower() in {".parquet", ".pq"}:
        raise DataError(f"{path} is not a Parquet file, whatever its name says: write it again.")
    lines = [line for line in _as_text(path, head).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty: give a file with a header line and rows of data.")
    if _LIBSVM_ROW.match(lines[0]):
        return _read_libsvm(path), "target"
    return _read_csv(path, header=lines[0]), None


def _first_bytes(path: Path, count: int = 65536) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}: check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory: give the path of a file in it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}): check its rights.") from None


def _as_text(path: Path, head: bytes) -> str:
    try:
        # the last character of `head` may be cut in the middle
        return head.decode("utf-8-sig", errors="ignore" if len(head) >= 65536 else "strict")
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not text in UTF-8: give a CSV, Parquet or libsvm file, not compressed."
        ) from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except (pa.ArrowException, OSError):
        raise DataError(f"{path} is a damaged Parquet file: write it again.") from None
    return table.rename(columns=str)


def _read_csv(path: Path, header: str) -> pd.DataFrame:
    separator = max(",;\t", key=header.count)
    try:
        with warnings.catch_warnings():
            # a row that is longer than the header would lose its end with a warning only
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, sep=separator, skipinitialspace=True, index_col=False, low_memory=False
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is a malformed CSV file ({_brief(error)}): "
            "give every row as many values as the header has names."
        ) from None
    table.columns = [str(name).strip() for name in table.columns]
    if all(_is_number(name) for name in table.columns):
        raise DataError(
            f"The first line of {path} holds numbers: put a line with the column names above it."
        )
    return table


def _read_libsvm(path: Path) -> pd.DataFrame:
    try:
        sparse, target = load_svmlight_file(str(path))[:2]
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(
            f"{path} is a malformed libsvm file ({_brief(error)}): "
            "write every row as `target index:value index:value ...`."
        ) from None
    rows, columns = sparse.shape
    if rows * columns > _LARGEST_DENSE:
        raise DataError(
            f"{path} has {rows} x {columns} entries, too many to hold as a dense matrix: "
            "select rows or columns first."
        )
    table = pd.DataFrame(sparse.toarray(), columns=[f"x{j}" for j in range(1, columns + 1)])
    return table.assign(target=np.asarray(target))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _brief(error: Exception) -> str:
    """The first line of an error's message, without the parser's own prefix and final stop."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first.removeprefix("Error tokenizing data. C error: ").rstrip(". ")

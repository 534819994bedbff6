"""Files: a JSON header and named arrays in one ``.npz``, written whole or not at all; reading one executes nothing."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np

from fastbp.data import Array

Path = str | os.PathLike[str]

FORMAT = 1  # of the files that are written; older ones are read


class FileFormatError(ValueError):
    """A file that cannot be read: damaged, cut short, of another kind, or written by a newer fastbp."""


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the final place, sync and rename: no reader ever finds half of a file, nor the loss of the old one.

    Raises
    ------
    OSError
        If the disk is full or the directory cannot be written; what was there before is still there.
    """
    temporary = f"{os.fsdecode(path)}.tmp{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(os.path.dirname(os.path.abspath(os.fsdecode(path))))
    except OSError as error:  # a full disk names no file, a rename two
        raise OSError(error.errno, error.strerror, os.fsdecode(path)) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _sync_directory(path: str) -> None:
    """Make a rename last through a power cut; only POSIX systems open directories."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write(path: Path, header: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a header that JSON can hold, and arrays by name."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {"header": np.array(json.dumps({"format": FORMAT} | header)), **arrays}
    np.savez(buffer, **members)
    write_whole(path, buffer.getvalue())


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays that ``write`` wrote.

    Raises
    ------
    FileFormatError
        If it is no such file, or one of a newer format.
    OSError
        If there is no file or it cannot be read.
    """
    import zipfile  # NumPy brings it in only for such files
    import zlib

    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:  # NumPy may leave its own file open
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
        version = int(header["format"])
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,  # an encrypted member or, by NotImplementedError, an unknown compression
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise unreadable(path, error) from error
    if version > FORMAT:
        raise FileFormatError(
            f"path: expected file format {FORMAT} or older, got {version} in {os.fsdecode(path)!r}; it needs a newer "
            "fastbp"
        )
    return header, arrays


def unreadable(path: Path, error: Exception) -> FileFormatError:
    """The error for a file of which something is wrong."""
    return FileFormatError(f"path: expected a model saved by fastbp, got {os.fsdecode(path)!r}: {error}")

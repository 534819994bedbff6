"""Files: a JSON header and named arrays in one ``.npz``, written whole or not at all; reading one executes nothing."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np

from fastbp.data.arrays import Array
from fastbp.formats.writing import File as File  # of all that takes one
from fastbp.formats.writing import Path as Path
from fastbp.formats.writing import name_of, read_bytes, write_file

FORMAT = 1  # of the files that are written; older ones are read


class FileFormatError(ValueError):
    """A file that cannot be read: damaged, cut short, of another kind, or written by a newer fastbp."""


def write(path: File, header: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a header that JSON can hold, and arrays by name."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {"header": np.array(json.dumps({"format": FORMAT} | header)), **arrays}
    np.savez(buffer, **members)
    write_file(path, buffer.getvalue())


def read(path: File) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays that ``write`` wrote, these read-only.

    Raises
    ------
    FileFormatError
        If it is no such file, or one of a newer format.
    OSError
        If there is no file or it cannot be read.
    """
    data = read_bytes(path)
    try:
        arrays = _members(data)
        header = json.loads(str(arrays.pop("header")))
        version = int(header["format"])
    except MemoryError:  # of a file that is as large
        raise
    except Exception as error:  # zipfile, json and NumPy raise a dozen kinds for bytes that they do not expect
        raise unreadable(path, error) from error
    if version > FORMAT:
        raise FileFormatError(
            f"path: expected file format {FORMAT} or older, got {version} in {name_of(path)!r}; it needs a newer fastbp"
        )
    return header, arrays


def _members(data: bytes) -> dict[str, Array]:
    """The arrays of an ``.npz`` file, read strictly.

    ``np.load`` takes the memory that an array only claims to fill, and leaves a member's checksum unread where the
    array is shorter than the member.
    """
    import zipfile  # for such files alone

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > len(data):
            raise ValueError("its members are compressed or overlap")  # and may fill more memory than the file
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


# What np.savez writes before an array of numbers, or before a string: anything else was not written by ``write``.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>][fiuU]\d{1,9}|\|[biu]1)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}, )*(?:\d{1,19},?)?)\), \} *\n",
    re.DOTALL,
)


def _array(data: bytes) -> Array:
    """The array of one ``.npy`` member, over its bytes."""
    head = _NPY.match(data)
    if head is None:
        raise ValueError("a member is no array of numbers")
    dtype, fortran, shape = (part.decode() for part in head.groups())
    array: Array = np.frombuffer(data, np.dtype(dtype), offset=head.end())
    return array.reshape([int(n) for n in shape.split(",") if n.strip()], order="F" if fortran == "True" else "C")


def unreadable(path: File, error: Exception) -> FileFormatError:
    """The error for a file of which something is wrong."""
    return FileFormatError(f"path: expected a model saved by fastbp, got {name_of(path)!r}: {error}")

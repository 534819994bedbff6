"""How files of all formats are written: whole or not at all, by any number of threads and processes at once.

The data goes into a temporary file beside the final place, which then takes that place. Its writer holds a lock on it
for as long, and the system gives the lock back when a process dies: what nobody has locked is abandoned.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from contextlib import suppress
from typing import IO

Path = str | os.PathLike[str]
#: A path, or a file that is open for bytes.
File = Path | IO[bytes]

if sys.platform == "win32":
    _HOUR = 3600.0  # seconds; no file takes so long

    def _lock(file: IO[bytes]) -> bool:
        return True  # an open file cannot be removed there

    def _is_abandoned(path: str) -> bool:
        return time.time() - os.path.getmtime(path) > _HOUR  # a younger one may be closed, to be renamed at once

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        """Lock a file against all other openings of it, of this process too; whether that worked."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody has it, or the file system has no locks
            return False
        return True

    def _is_abandoned(path: str) -> bool:
        """Whether nobody is writing this temporary file any more; one without data is about to be locked."""
        with open(path, "r+b") as file:
            return os.fstat(file.fileno()).st_size > 0 and _lock(file)


def name_of(file: File) -> str:
    """What errors call it."""
    return str(getattr(file, "name", file)) if hasattr(file, "read") else os.fsdecode(file)


def read_bytes(file: File) -> bytes:
    """All that is in a file, or that is left of one that is open."""
    if not hasattr(file, "read"):
        with open(os.fsdecode(file), "rb") as opened:  # a number would be an open file
            return opened.read()
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError(f"path: expected a path or a file that is open for bytes, got {file!r}")
    return data


def write_file(file: File, data: bytes) -> None:
    """``write_whole``, or into a file that is open, whose owner sees to the rest."""
    if not hasattr(file, "write"):
        write_whole(file, data)
        return
    try:
        file.write(data)
    except TypeError as error:
        raise TypeError(f"path: expected a path or a file that is open for bytes, got {file!r}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the final place, sync and rename: no reader ever finds half of a file, nor the loss of the old one.

    Of several writers the last to finish wins. A file that was there keeps its permissions, and a symbolic link stays
    one: what it points to is written.

    Raises
    ------
    OSError
        If the disk is full or the directory cannot be written; what was there before is still there.
    """
    where = os.fsdecode(path)
    try:
        place = _place(where)
        with suppress(OSError):  # a folder that can be written need not be readable
            remove_leftovers(place)
        _replace(place, data)
        _sync_directory(os.path.dirname(os.path.abspath(place)))
    except OSError as error:  # a full disk names no file, a rename two
        raise OSError(error.errno, error.strerror, where) from error


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of this file when they wrote it; an OSError if there is no folder."""
    folder, name = os.path.split(os.path.abspath(_place(os.fsdecode(path))))
    temporary = re.compile(re.escape(name) + r"\.tmp\d+(-[0-9a-f]{16})?")
    for entry in os.listdir(folder):
        leftover = os.path.join(folder, entry)
        if temporary.fullmatch(entry):
            with suppress(OSError):  # it is somebody else's, or gone by now
                if _is_abandoned(leftover):
                    os.remove(leftover)


def _place(where: str) -> str:
    """Where the file itself belongs, behind symbolic links; an OSError if they lead in a circle."""
    place = os.path.realpath(where) if os.path.islink(where) else where
    if os.path.islink(place):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), where)
    return place


def _replace(place: str, data: bytes) -> None:
    """Put a new file of the same permissions in this place."""
    try:
        mode = stat.S_IMODE(os.stat(place).st_mode)
    except FileNotFoundError:
        mode = None
    temporary = f"{place}.tmp{os.getpid()}-{os.urandom(8).hex()}"  # of this call alone

    def create(name: str, flags: int) -> int:
        """No one may read it who may not read the old one; its owner may write, to find out whether it is locked."""
        return os.open(name, flags, 0o666 if mode is None else mode | stat.S_IWUSR)

    try:
        with open(temporary, "xb", opener=create) as file:
            _lock(file)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if mode is not None and stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.chmod(temporary, mode)
            if os.name == "nt":  # where no open file is renamed; elsewhere it stays locked until it is in its place
                file.close()
            os.replace(temporary, place)
    except BaseException:
        with suppress(OSError):  # there may be none yet
            os.remove(temporary)
        raise


def _sync_directory(path: str) -> None:
    """Make a rename last through a power cut; only POSIX systems open directories."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

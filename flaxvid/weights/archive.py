"""Members of zip archives, such as torch and NumPy write them, read with their checksums and in bounded memory."""

import io
import struct
import zipfile
from typing import IO

from flaxvid.weights.pickled import Unreadable

MOST_AROUND = 16 << 20
"""The most bytes of an archive's directory, and of what a small archive holds compressed beside its tensors' numbers.
A network of 500 tensors with its optimizer has 0.3 MB."""


class Archive:
    """An open zip archive.

    Attributes:
        names: of its members.
    """

    def __init__(self, file: IO[bytes]):
        """Reads the directory.

        Raises:
            Unreadable: the directory is too large, names a member twice, or lacks some.
            zipfile.BadZipFile: the file is damaged.
        """
        self._zip = zipfile.ZipFile(_Modest(file))  # pyright: ignore[reportArgumentType]
        self.names = self._zip.namelist()
        if len(set(self.names)) < len(self.names):
            raise Unreadable("is damaged: its zip archive names a member twice: fetch it again")
        file.seek(-22 - len(self._zip.comment), io.SEEK_END)  # the end of the directory, which zipfile does not check
        (count,) = struct.unpack("<10xH10x", file.read(22))
        if count not in (len(self.names), 0xFFFF):
            raise Unreadable(f"is damaged: its zip archive has {len(self.names)} members, not {count}: fetch it again")

    def size(self, name: str) -> int:
        """The bytes of a member, as the directory says; KeyError if it has no such member."""
        return self._zip.getinfo(name).file_size

    def read(self, name: str, most: int, *, exactly: bool = False) -> bytearray:
        """A member of at most, or exactly, so many bytes.

        Raises:
            Unreadable: it has others.
            zipfile.BadZipFile: its checksum is wrong.
            KeyError: no such member.
        """
        info, short = self._zip.getinfo(name), name.partition("/")[2] or name
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable(f"has {short!r} compressed in a way that torch does not use: unpack and save it again")
        if info.file_size > most or (exactly and info.file_size < most):
            raise Unreadable(f"is damaged: expected {most} bytes of {short!r}, got {info.file_size}: fetch it again")
        found = bytearray()
        with self._zip.open(info) as member:  # its checksum is compared at its end
            while chunk := member.read(1 << 20):
                found += chunk
        if len(found) != info.file_size:
            raise Unreadable(
                f"was cut off: expected {info.file_size} bytes of {short!r}, got {len(found)}: fetch it again"
            )
        return found


class _Modest:
    """A file that refuses a read of more bytes than an archive's directory should have."""

    def __init__(self, file: IO[bytes]):
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, count: int = -1) -> bytes:
        if count > MOST_AROUND:
            raise Unreadable(f"is damaged: its zip archive has a directory of {count} bytes: fetch it again")
        return self._read(count)

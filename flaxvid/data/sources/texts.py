"""Finds text files by their names and reads them in whatever encoding they have."""

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OLD = ("cp1252", "gb18030", "shift_jis", "big5", "euc_kr", "cp1251")


def read_texts(path: Path, layout: str) -> dict[str, str]:
    """What a text file may say, by encoding: one text if the encoding is known, otherwise one for each that fits.

    The encoding is known if the file begins with a mark, has its zeros where UTF-16 has them, or is UTF-8. Otherwise
    "bytes" is one of the encodings: Python reads file names that are not UTF-8 in this way.

    Raises:
        FileNotFoundError: There is no such file. The message shows the expected layout.
        ValueError: The mark does not fit the text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {layout}; got no file {path}")
    data = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            text = _decoded(data[3:] if encoding == "utf-8" else data, encoding)
            if text is None:
                raise ValueError(
                    f"{path}: expected {encoding.upper()} as its first bytes say, got another encoding: save it anew"
                )
            return {encoding: text}
    if b"\0" in data:
        wide = {e: text for e in ("utf-16-le", "utf-16-be") if (text := _decoded(data, e)) and "\0" not in text}
        wide = {e: text for e, text in wide.items() if "\n" in text or "\r" in text}
        if len(wide) == 1:
            return wide
        line = data[: data.index(0)].count(10) + 1
        raise ValueError(f"{path}, line {line}: expected text, got zeros: save it anew as UTF-8")
    if (text := _decoded(data, "utf-8")) is not None:
        return {"utf-8": text}
    texts = {encoding: text for encoding in _OLD if (text := _decoded(data, encoding)) is not None}
    return texts | {"bytes": data.decode("utf-8", "surrogateescape")}


def read_text(path: Path, layout: str) -> str:
    """Reads a text file in UTF-8, or in the encoding that its mark says.

    Raises:
        FileNotFoundError: There is no such file. The message shows the expected layout.
        ValueError: It is in another encoding. The message names the line.
    """
    texts = read_texts(path, layout)
    if len(texts) > 1:
        raise unknown_encoding(path)
    return next(iter(texts.values()))


def unknown_encoding(path: Path) -> ValueError:
    """The error of a file whose encoding cannot be known."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if _decoded(line, "utf-8") is None:
            return ValueError(
                f"{path}, line {number}: expected UTF-8, got {line[:80]!r} in an unknown encoding: save the file as "
                "UTF-8, as `iconv -f ENCODING -t UTF-8` does"
            )
    return ValueError(f"{path}: expected UTF-8, got another encoding: save the file as UTF-8")


def read_lines(path: Path, layout: str) -> list[str]:
    """The lines of a file, stripped, without empty ones."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path, layout)) if line.strip()]


def first_file(names: Sequence[str], places: Iterable[str | Path], layout: str) -> Path:
    """The first file with one of the names, which may be patterns, in the first place that has one."""
    for place in map(Path, places):
        for name in names:
            found = sorted(place.glob(name))
            if found:
                return found[0]
    raise FileNotFoundError(f"expected {layout}; got no {' or '.join(names)}")


def list_places(root: Path, lists: str | Path | None, *folders: str) -> list[Path]:
    """Where list files may be: in `lists` if it is given, otherwise in the root and in these folders of it."""
    return [Path(lists).expanduser()] if lists else [root, *(root / folder for folder in folders)]


def videos_folder(root: Path, *folders: str) -> Path:
    """The folder of the videos: the first of these that the root has, otherwise the root."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root)


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None

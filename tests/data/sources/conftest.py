"""What tests of lists and folders write and read; fixtures, because tests cannot import each other."""

import pytest


@pytest.fixture(scope="session")
def touch():
    """Makes files under a root, empty ones or of some content."""

    def make(root, *paths, content=b""):
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)

    return make


@pytest.fixture(scope="session")
def write():
    """Writes lines to a file."""

    def lines_to(path, *lines, encoding="utf-8", end="\n"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((end.join(lines) + end).encode(encoding))

    return lines_to


@pytest.fixture(scope="session")
def named():
    """(video, class name) of every video of a source."""

    def pairs(source):
        rows = [source[i] for i in range(len(source))]
        return [(row["id"], source.classes[row["label"]]) for row in rows]

    return pairs


@pytest.fixture
def root(tmp_path, touch):
    """Four videos, one with blanks in its name and one with a comma."""
    touch(tmp_path, "a.mp4", "b c.mp4", "d,e.mp4", "f/g.mp4")
    return tmp_path

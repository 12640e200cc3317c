"""Files of the Hugging Face Hub by ``hf://OWNER/REPO/FILE`` or ``hf://OWNER/REPO@REVISION/FILE``.

huggingface_hub fetches them. It has a cache of its own ($HF_HOME), goes on with a download that broke off, and waits
for another process that fetches the same file.
"""

import json
import re
from pathlib import Path

_ADDRESS = re.compile(r"hf:/+(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?/(?P<file>.+)")
"""A `Path` makes one slash of two."""


def is_on_hub(name: str | Path) -> bool:
    """Whether a name is an address on the Hub."""
    return Path(name).as_posix().startswith("hf:/")


def fetch_from_hub(address: str | Path) -> Path:
    """The file of an address, downloaded at first use.

    Raises:
        ValueError: it has not the form of an address.
        ConnectionError: it cannot be fetched; the message says where it is.
        ImportError: huggingface_hub is not installed.
    """
    match = _ADDRESS.fullmatch(Path(address).as_posix())
    if match is None:
        raise ValueError(f"expected hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE, got {address}")
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]  (of the extra [hub])
    except ImportError as error:
        raise ImportError(f'{address} needs huggingface_hub: pip install "flaxvid[hub]"') from error
    repo, revision, file = match["repo"], match["revision"], match["file"]
    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # its errors are those of several libraries
        url = f"https://huggingface.co/{repo}/resolve/{revision or 'main'}/{file}"
        raise ConnectionError(
            f"could not fetch {url} ({type(error).__name__}: {' '.join(str(error).split())}): fetch it where there is "
            "a network, and pass the path of the file"
        ) from error


def read_labels(address: str | Path) -> tuple[str, ...] | None:
    """The class names that transformers keeps in `config.json` beside a file; None if there are none.

    Args:
        address: of the file.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    folder = Path(address).as_posix().rpartition("/")[0]
    try:
        labels = json.loads(fetch_from_hub(f"{folder}/config.json").read_bytes())["id2label"]
        names = tuple(labels[str(number)] for number in range(len(labels)))
    except (ConnectionError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return names if all(isinstance(name, str) for name in names) else None

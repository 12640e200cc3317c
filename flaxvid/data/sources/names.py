"""Lists names in a message."""

from collections.abc import Iterable


def list_names(names: Iterable[str], most: int = 20) -> str:
    """The names with commas between them. Of many it gives the first ones and their number."""
    names = [*names]
    return ", ".join(names[:most]) + f", ... ({len(names)} in all)" * (len(names) > most)

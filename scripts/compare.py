"""Writes one HTML page that compares runs: python scripts/compare.py RUN RUN ... [--output compare.html]."""

import argparse
import sys
from pathlib import Path

from flaxvid.report.compare import write_comparison


def main() -> None:
    """Parses and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, finished or not")
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help="default: compare.html")
    arguments = parser.parse_args()
    try:
        print(write_comparison(arguments.runs, arguments.output))
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()

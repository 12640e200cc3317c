"""From a file to a clip; no network is in sight."""

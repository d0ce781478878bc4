"""Where a Chromium is, for the tests of the site and its picture."""

import os
import shutil

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """Find the browser: `CHROMIUM` if set, else one of the usual names."""
    names = (os.environ.get("CHROMIUM") or "", *NAMES)
    return next(filter(None, map(shutil.which, filter(None, names))), None)

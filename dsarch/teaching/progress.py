"""What the reader has solved, in one small file on the reader's machine.

``DSARCH_PROGRESS=off`` turns it off; test runs never write it.
"""

import contextlib
import json
import os
import sys
from pathlib import Path


def path() -> Path:
    """Where the state lies: ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "dsarch" / "progress.json"


def enabled() -> bool:
    """Off by wish, under pytest, and while the book itself is executed."""
    if os.environ.get("DSARCH_PROGRESS", "on").lower() in ("off", "0", "no"):
        return False
    return "pytest" not in sys.modules and "PYTEST_VERSION" not in os.environ


def solved() -> set[str]:
    """The ids solved so far; an unreadable file counts as empty."""
    try:
        found = json.loads(path().read_text(encoding="utf8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(found, list):
        return set()
    return {id for id in found if isinstance(id, str)}


def note(id: str) -> None:
    """Remember ``id``; a disk that refuses is no reason to stop a reader."""
    if not enabled() or id in (known := solved()):
        return
    target = path()
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(sorted(known | {id})), encoding="utf8")
        draft.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)

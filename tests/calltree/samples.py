"""A tool whose process has a child of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agentmesh import tool

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


@tool(timeout=60.0)
def sleep_with_a_child(marker: str) -> None:
    """Start a process, say both pids in the file `marker`, and wait for it.

    Args:
        marker: The file.
    """
    child = subprocess.Popen(SLEEPER)
    path = Path(marker)
    path.with_suffix(".part").write_text(f"{os.getpid()} {child.pid}")
    path.with_suffix(".part").rename(path)
    child.wait()

"""The tools of a review, for `agentmesh up`: they may read the directory in `$REVIEW_ROOT`, and nothing else.

By default that is the checkout this example is in.
"""

from __future__ import annotations

import os
from pathlib import Path

from agentmesh.tools import builtin

ROOT = Path(os.environ.get("REVIEW_ROOT") or Path(__file__).resolve().parents[2])

read_file = builtin.read_file.configure(root=ROOT)
ruff_check = builtin.ruff_check.configure(root=ROOT)
radon_complexity = builtin.radon_complexity.configure(root=ROOT)
python_metrics = builtin.python_metrics.configure(root=ROOT)

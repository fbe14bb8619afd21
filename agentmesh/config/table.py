"""What all tables of the settings share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """One table of the file: immutable, and unknown keys are errors."""

    # No `use_attribute_docstrings`: reading the sources for them costs every command 25 ms; `cli/docs.py` does it.
    model_config = ConfigDict(frozen=True, extra="forbid")

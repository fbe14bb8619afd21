"""What a review is made of: findings, one review per file, and the report over all of them.

Everything here travels between agents as JSON and ends up in `report.json`, so paths are relative to the
reviewed root and posix-style, lines and columns count from 1, and times are aware UTC.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentmesh.agents.review.packing import Packable

ToolName = Literal["ruff", "radon", "ast", "walk"]


class Severity(StrEnum):
    """How much it matters; the names are SARIF's levels."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def order(self) -> int:
        """0 for errors, growing as it matters less."""
        return _ORDER[self]


_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Origin(_Model):
    """Another tool that reported the same problem."""

    tool: ToolName
    rule: str
    message: str
    column: int = 1


class Finding(_Model):
    """One problem at one place."""

    tool: ToolName
    rule: str
    path: str
    line: int = Field(default=1, ge=1)
    column: int = Field(default=1, ge=1)
    end_line: int = Field(default=1, ge=1)
    end_column: int = Field(default=1, ge=1)
    message: str
    severity: Severity = Severity.WARNING
    symbol: str = ""
    """The function, class or call it is about, where the tool says so."""
    value: int = 0
    """The measured number, for rules that measure something (complexity, missing docstrings)."""
    fixable: bool = False
    """Whether the tool offers an automatic fix."""
    url: str = ""
    """Where the rule is explained."""
    fingerprint: str = ""
    """16 hex digits that stay the same while the offending line only moves."""
    also: tuple[Origin, ...] = ()
    """The same problem as other tools put it; filled by `dedupe`."""


class Merge(_Model):
    """Findings of several tools about one problem, by fingerprint."""

    kept: str
    absorbed: tuple[str, ...]


class FunctionBlock(_Model):
    """Complexity of one function, method or class, exactly as radon reports it."""

    name: str
    kind: Literal["function", "method", "class"]
    class_name: str = ""
    line: int
    end_line: int
    complexity: int
    rank: str

    @property
    def qualified_name(self) -> str:
        """`Class.method`, or the bare name outside of a class."""
        return f"{self.class_name}.{self.name}" if self.class_name else self.name


class FileMetrics(_Model):
    """Sizes of one file."""

    lines: int = 0
    code_lines: int = 0
    functions: int = 0
    classes: int = 0
    max_nesting: int = 0
    missing_docstrings: int = 0


class Excerpt(_Model):
    """A few source lines around a finding."""

    first_line: int
    lines: tuple[str, ...]


class FileReview(_Model, Packable):
    """Everything the tools said about one file, before anything is merged or ranked."""

    heavy: ClassVar[frozenset[str]] = frozenset({"findings", "functions", "excerpts"})

    path: str
    findings: tuple[Finding, ...] = ()
    functions: tuple[FunctionBlock, ...] = ()
    metrics: FileMetrics = FileMetrics()
    excerpts: dict[str, Excerpt] = {}
    """Source for the findings of this file that may become one of the first ten, by fingerprint."""
    missing: tuple[ToolName, ...] = ()
    """Tools that are not installed where the file was reviewed."""

    @property
    def worst_function(self) -> FunctionBlock | None:
        """The most complex function or method; None in a file without any."""
        candidates = [block for block in self.functions if block.kind != "class"]
        return max(candidates, key=lambda block: (block.complexity, -block.line), default=None)


class RankedFinding(_Model):
    """One of the findings to fix first."""

    place: int
    score: float
    reason: str
    finding: Finding
    excerpt: Excerpt | None = None
    similar: int = 0
    """Other findings of the same rule."""
    similar_files: int = 0
    """Files those others are in."""


class FixedFinding(_Model):
    """A finding of the earlier run that is gone."""

    fingerprint: str
    rule: str
    path: str
    line: int


class History(_Model):
    """This run against the earlier one."""

    earlier_at: datetime
    new: tuple[str, ...] = ()
    """Fingerprints that the earlier run did not have."""
    fixed: tuple[FixedFinding, ...] = ()
    unchanged: int = 0


class Report(_Model):
    """The whole review. `files` keeps what the tools said; `findings` is that without repetitions."""

    schema_version: Literal[1] = 1
    project: str
    """Name of the reviewed directory."""
    created_at: datetime
    duration: float = 0.0
    """Seconds from the start of the walk to this report."""
    tools: dict[str, str] = {}
    """Versions of what was run."""
    files: tuple[FileReview, ...] = ()
    findings: tuple[Finding, ...] = ()
    first: tuple[RankedFinding, ...] = ()
    history: History | None = None
    missing: tuple[ToolName, ...] = ()
    """Tools that said nothing because they are not installed."""

    def count(self, severity: Severity) -> int:
        """How many findings have that severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def summary(self) -> Summary:
        """What a person wants to know first."""
        history = self.history
        return Summary(
            project=self.project,
            files=len(self.files),
            findings=len(self.findings),
            by_severity={severity: self.count(severity) for severity in Severity},
            first=self.first,
            earlier_at=history.earlier_at if history else None,
            new=len(history.new) if history else 0,
            fixed=len(history.fixed) if history else 0,
            duration=self.duration,
            missing=self.missing,
        )


class Summary(_Model):
    """The result of a review in a form that fits into a message and on a screen."""

    project: str
    files: int
    findings: int
    by_severity: dict[Severity, int]
    first: tuple[RankedFinding, ...] = ()
    earlier_at: datetime | None = None
    """When the review was made that this one was compared with."""
    new: int = 0
    fixed: int = 0
    duration: float = 0.0
    """Seconds."""
    missing: tuple[ToolName, ...] = ()
    """As in the report."""
    outputs: dict[str, str] = {}
    """Paths of the written files: `html`, `sarif`, `json`."""

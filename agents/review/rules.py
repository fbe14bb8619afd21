"""What is known about rules: how severe, how urgent, and why in words a person understands.

A rule is looked up by its longest known prefix (`S602` before `S6` before `S`), so a rule that is new in a later
version of ruff still gets the judgement of its family.

`weight` says what it costs to leave the problem in, from 0 to 100:

* 80 and more: the program does something else than what is written, or anybody can make it do so
* 50 to 79: it will, on a path that is not taken every day
* 20 to 49: it makes the next mistake likely
* below 20: style
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from agentmesh.agents.review.model import Finding, Severity

_T = TypeVar("_T")

SYNTAX_ERROR = "syntax-error"
UNREADABLE = "unreadable"
TOOL_FAILED = "tool-failed"
COMPLEXITY = "complexity"
RISKY_CALL = "risky-call"
MISSING_DOCSTRINGS = "missing-docstrings"

UNPARSABLE = "unparsable"
"""The problem of a file that is no Python, however it is put (see `problem_of`)."""

COMPLEXITY_LIMIT = 10
"""Functions above it are findings; McCabe's own limit and ruff's default."""


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """The judgement about one rule or family of rules."""

    severity: Severity
    weight: float
    why: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

_UNPARSABLE = RuleInfo(_E, 100, "Python cannot parse this file: nothing in it runs, and no other check sees inside.")
_TANGLED = RuleInfo(_W, 20, "Too many paths to test or to keep in mind; split it into smaller functions.")
_PASSWORD = RuleInfo(_W, 40, "Looks like a password in the source; everybody who can read the code has it.")
_SILENCED = RuleInfo(_W, 42, "Whatever goes wrong here, nobody will ever hear of it.")
_SHELL = "A shell interprets the whole command: one unquoted value from outside runs anything."

_RULES: dict[str, RuleInfo] = {
    # ---- our own
    SYNTAX_ERROR: _UNPARSABLE,
    UNREADABLE: RuleInfo(_E, 90, "The file could not be read, so nobody knows what is in it."),
    TOOL_FAILED: RuleInfo(_W, 30, "A check did not finish here, so problems may be hidden."),
    COMPLEXITY: _TANGLED,
    RISKY_CALL: RuleInfo(_W, 50, "This call is dangerous as soon as its input comes from somebody else."),
    MISSING_DOCSTRINGS: RuleInfo(_N, 3, "Public names without a word on what they promise."),
    # ---- ruff: syntax
    "invalid-syntax": _UNPARSABLE,
    "E9": RuleInfo(_E, 90, "The file could not be read as Python source."),
    # ---- ruff: names and logic (pyflakes)
    "F": RuleInfo(_W, 25, "Probably not what was meant."),
    "F401": RuleInfo(_N, 12, "An import nobody uses costs start-up time and hides real dependencies."),
    "F402": RuleInfo(_W, 45, "The loop variable replaces the import of the same name from here on."),
    "F403": RuleInfo(_N, 14, "A star import makes undefined names invisible to every checker."),
    "F405": RuleInfo(_N, 8, "Comes from a star import, so nobody can tell whether it exists."),
    "F5": RuleInfo(_E, 78, "The format string and its arguments do not fit: this line raises, or drops a value."),
    "F541": RuleInfo(_N, 6, "An f-string that formats nothing; perhaps the braces were forgotten."),
    "F601": RuleInfo(_W, 58, "The same dictionary key twice: the earlier value is silently lost."),
    "F631": RuleInfo(_E, 80, "An assertion on a tuple is always true: it checks nothing."),
    "F632": RuleInfo(_E, 72, "`is` compares identity, not value: the result depends on the interpreter."),
    "F634": RuleInfo(_E, 80, "A condition that is a tuple is always true."),
    "F7": RuleInfo(_E, 92, "This statement is not allowed here: the module cannot be imported."),
    "F811": RuleInfo(_W, 46, "Defined twice: the first definition can never be used, though somebody meant it."),
    "F821": RuleInfo(_E, 86, "Raises NameError as soon as this line runs."),
    "F822": RuleInfo(_W, 60, "`from module import *` fails: `__all__` promises a name that is not there."),
    "F823": RuleInfo(_E, 86, "Read before it is assigned: raises UnboundLocalError."),
    "F841": RuleInfo(_N, 18, "Assigned and never read: dead code, or a result that was forgotten."),
    "F9": RuleInfo(_E, 76, "Raises the wrong thing."),
    # ---- ruff: likely bugs (flake8-bugbear)
    "B": RuleInfo(_W, 28, "A pattern that has caused bugs before."),
    "B002": RuleInfo(_E, 70, "Python has no `++`: this does nothing."),
    "B003": RuleInfo(_W, 55, "Assigning to os.environ does not change the environment."),
    "B004": RuleInfo(_W, 34, "Not a reliable test for callables."),
    "B005": RuleInfo(_W, 55, "`strip` removes characters, not a prefix or suffix."),
    "B006": RuleInfo(_W, 66, "The default is shared by all calls: what one caller adds, the next one sees."),
    "B007": RuleInfo(_N, 8, "The loop variable is never used; name it `_` if that is meant."),
    "B008": RuleInfo(_W, 36, "Called once at import, not on each call."),
    "B009": RuleInfo(_N, 6, "Plain attribute access says the same."),
    "B010": RuleInfo(_N, 6, "Plain assignment says the same."),
    "B011": RuleInfo(_W, 42, "`assert False` disappears under `python -O`, and the code goes on."),
    "B012": RuleInfo(_E, 82, "Leaving a `finally` block this way silently throws away the exception in flight."),
    "B015": RuleInfo(_W, 56, "The comparison's result is thrown away; an assignment or assert was probably meant."),
    "B016": RuleInfo(_E, 78, "Raising a literal raises TypeError instead."),
    "B017": RuleInfo(_W, 38, "Passes on any exception, also on the wrong one."),
    "B018": RuleInfo(_W, 34, "An expression whose value nobody uses: a forgotten call or assignment?"),
    "B019": RuleInfo(_W, 48, "The cache keeps every instance alive: a memory leak in long-running programs."),
    "B020": RuleInfo(_W, 62, "The loop variable overwrites what is being looped over."),
    "B021": RuleInfo(_W, 34, "An f-string is no docstring; it is lost."),
    "B022": RuleInfo(_W, 50, "`contextlib.suppress()` without arguments suppresses nothing."),
    "B023": RuleInfo(_W, 68, "The function sees the loop variable's last value, not the one at its creation."),
    "B024": RuleInfo(_N, 12, "An abstract class without abstract methods can be instantiated by mistake."),
    "B025": RuleInfo(_W, 58, "The second handler for the same exception never runs."),
    "B026": RuleInfo(_W, 30, "Arguments arrive in another order than they are written."),
    "B027": RuleInfo(_N, 12, "Subclasses are not told that they should implement this."),
    "B028": RuleInfo(_N, 8, "The warning points at this line instead of at its caller."),
    "B029": RuleInfo(_W, 60, "`except ():` catches nothing."),
    "B030": RuleInfo(_E, 74, "Only exception classes can be caught: this raises TypeError when it is needed most."),
    "B031": RuleInfo(_W, 58, "A group of `groupby` can be read only once."),
    "B032": RuleInfo(_W, 56, "An annotation where an assignment was probably meant."),
    "B033": RuleInfo(_N, 14, "The same value twice in a set."),
    "B035": RuleInfo(_W, 60, "Every pass writes the same key: only the last value survives."),
    "B039": RuleInfo(_W, 55, "A mutable default shared by every context."),
    "B9": RuleInfo(_N, 12, "Makes errors harder to understand or to see."),
    "B904": RuleInfo(_N, 16, "The traceback suggests a bug in the error handling; say `from error` or `from None`."),
    "B905": RuleInfo(_N, 12, "When the lengths differ, `zip` silently drops the rest."),
    "B909": RuleInfo(_W, 66, "Changing what is being looped over skips elements."),
    # ---- ruff: complexity, speed, simplification
    "C901": _TANGLED,
    "PERF": RuleInfo(_N, 9, "There is a faster way to write it."),
    "SIM": RuleInfo(_N, 6, "There is a shorter way to write it."),
    "SIM115": RuleInfo(_W, 32, "Without `with`, the file stays open when something fails."),
    "SIM22": RuleInfo(_W, 50, "The condition never changes its value: a mistake, or dead code."),
    # ---- ruff: style and statements (pycodestyle)
    "E": RuleInfo(_N, 5, "Not the usual style."),
    "E4": RuleInfo(_N, 6, "Imports belong to the top, one a line."),
    "E7": RuleInfo(_N, 7, "Not the usual style."),
    "E711": RuleInfo(_W, 24, "`== None` may be overridden by the other object; `is None` cannot."),
    "E721": RuleInfo(_W, 24, "Comparing types ignores subclasses."),
    "E722": RuleInfo(_W, 50, "A bare `except` also swallows Ctrl-C, SystemExit and every typo inside the block."),
    "E741": RuleInfo(_N, 8, "`l`, `O` and `I` look like digits."),
    # ---- ruff: security (bandit)
    "S": RuleInfo(_W, 30, "A security check deserves a look."),
    "S102": RuleInfo(_W, 64, "`exec` runs whatever text it gets."),
    "S103": RuleInfo(_W, 46, "Others on this machine get more access to the file than they need."),
    "S104": RuleInfo(_W, 50, "Listens on every network interface, not only on this machine."),
    "S105": _PASSWORD,
    "S106": _PASSWORD,
    "S107": _PASSWORD,
    "S108": RuleInfo(_W, 34, "A fixed name in a shared temporary directory can be prepared by an attacker."),
    "S110": _SILENCED,
    "S112": _SILENCED,
    "S113": RuleInfo(_W, 54, "Without a timeout, a silent server blocks this program for ever."),
    "S2": RuleInfo(_W, 60, "An archive or debug setting from outside can take over the machine."),
    "S301": RuleInfo(_W, 60, "Unpickling data from outside runs code chosen by whoever wrote the data."),
    "S302": RuleInfo(_W, 48, "`marshal` crashes, or worse, on data that was tampered with."),
    "S306": RuleInfo(_W, 55, "Between choosing the name and opening it, somebody else can put a file there."),
    "S307": RuleInfo(_W, 76, "`eval` runs whatever text it gets; `ast.literal_eval` reads values safely."),
    "S31": RuleInfo(_N, 20, "Fine for trusted data only."),
    "S311": RuleInfo(_N, 12, "Predictable numbers; use `secrets` for anything that must not be guessed."),
    "S32": RuleInfo(_W, 26, "An outdated or unsafe protocol or function."),
    "S324": RuleInfo(_W, 40, "A broken hash; say `usedforsecurity=False` if it protects nothing."),
    "S501": RuleInfo(_E, 84, "Certificate checks are off: anybody in between can read and change the traffic."),
    "S50": RuleInfo(_W, 58, "Weak cryptography or an unsafe loader."),
    "S506": RuleInfo(_E, 80, "`yaml.load` builds any object the document asks for; use `safe_load`."),
    "S602": RuleInfo(_E, 84, _SHELL),
    "S603": RuleInfo(_N, 14, "Starts a program; check where its arguments come from."),
    "S604": RuleInfo(_W, 70, _SHELL),
    "S605": RuleInfo(_W, 74, _SHELL),
    "S606": RuleInfo(_N, 12, "Starts a program; check where its arguments come from."),
    "S607": RuleInfo(_N, 12, "Which program runs depends on the PATH of the moment."),
    "S608": RuleInfo(_W, 72, "SQL put together from strings: a value from outside can rewrite it. Use parameters."),
    "S609": RuleInfo(_W, 56, "A wildcard lets file names turn into options."),
    "S701": RuleInfo(_E, 80, "Templates without escaping put visitors' text into the page as code."),
}  # fmt: skip

_CATEGORIES = {
    "Names and logic": ("F", "E9", "invalid-syntax", SYNTAX_ERROR, UNREADABLE, TOOL_FAILED),
    "Likely bugs": ("B", "E7", "SIM22"),
    "Security": ("S", RISKY_CALL),
    "Complexity": ("C90", COMPLEXITY),
    "Speed": ("PERF",),
    "Simpler code": ("SIM",),
    "Style": ("E", "E70", "E74", "E73"),
    "Documentation": (MISSING_DOCSTRINGS,),
}
_CATEGORY_OF = {prefix: name for name, prefixes in _CATEGORIES.items() for prefix in prefixes}

_FALLBACK = RuleInfo(_W, 20, "Worth a look.")

_RISKY_RUFF_RULES = frozenset({"S102", "S113", "S202", "S301", "S302", "S306", "S307", "S506", "S602", "S604", "S605"})

_TEST_PATH = re.compile(r"(^|/)(tests?|testing)/|(^|/)(test_[^/]*|[^/]*_test|conftest)\.pyi?$")


def rule_info(rule: str) -> RuleInfo:
    """The judgement about a rule, or about the closest family it belongs to."""
    return _longest(_RULES, rule, _FALLBACK)


def category(rule: str) -> str:
    """What a rule is about, in two words."""
    return _longest(_CATEGORY_OF, rule, "Other")


def _longest(table: Mapping[str, _T], rule: str, default: _T) -> _T:
    return next((table[rule[:end]] for end in range(len(rule), 0, -1) if rule[:end] in table), default)


def problem_of(finding: Finding) -> str:
    """The kind of problem behind a rule: equal for rules of different tools that mean the same.

    Two tools name the same thing differently (`C901` and `complexity`, `S307` and `risky-call`); everything else is
    a problem of its own.
    """
    if finding.rule in ("C901", COMPLEXITY):
        return COMPLEXITY
    if finding.rule in ("invalid-syntax", "E902", SYNTAX_ERROR, UNREADABLE):
        return UNPARSABLE
    if finding.rule in _RISKY_RUFF_RULES or finding.rule == RISKY_CALL:
        return RISKY_CALL
    return finding.rule


def is_test_path(path: str) -> bool:
    """Whether a file holds tests, judged by its path."""
    return _TEST_PATH.search(path) is not None

"""`review.html`: one file that needs nothing else, to open, mail or archive.

Everything that comes from the reviewed code (paths, messages, source) is hostile until escaped: the page is built from
escaped text, the script only ever sets `textContent`, and a content security policy lets nothing but this page's own
script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

from agentmesh.agents.review.html_map import render_map
from agentmesh.agents.review.missing import install_command, lacks
from agentmesh.agents.review.model import Excerpt, FileReview, Finding, History, RankedFinding, Report, Severity
from agentmesh.agents.review.rules import category, rule_info

_FIXED_SHOWN = 200
_RULES_SHOWN = 10

_ASSETS = files("agentmesh.agents.review") / "assets"


def render_html(report: Report) -> str:
    """The whole page."""
    style = (_ASSETS / "report.css").read_text(encoding="utf-8")
    script = (_ASSETS / "report.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="agentmesh">
<title>Review of {escape(report.project)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#first">Skip to what to fix first</a>
{_header(report)}
<main>
{_missing(report)}
{_overview(report)}
{_first(report)}
{"" if "radon" in report.missing else render_map(report.files)}
{_files_section(report.files)}
{_findings_section(report)}
{_fixed_section(report.history)}
</main>
{_footer(report)}
<script type="application/json" id="data">{_embed(_data(report))}</script>
<script>{script}</script>
</body>
</html>
"""


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'", "base-uri 'none'")
    return "; ".join((*rules, "form-action 'none'"))


# ---------------------------------------------------------------- text


def _prose(text: str) -> str:
    """Escaped text in which `backticks` become code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _number(value: int) -> str:
    return f"{value:,}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _moment(moment: datetime) -> str:
    return f'<time datetime="{moment.isoformat()}">{moment:%d %B %Y, %H:%M} UTC</time>'


def _embed(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ---------------------------------------------------------------- sections


def _header(report: Report) -> str:
    seconds = f" in {report.duration:.1f} s" if report.duration else ""
    return f"""<header class="top">
<div>
<p class="kicker">Code review</p>
<h1>{escape(report.project)}</h1>
<p class="muted">{_moment(report.created_at)} · {_plural(len(report.files), "file")}{seconds}</p>
</div>
<button type="button" id="theme" class="ghost" hidden>Dark</button>
</header>"""


def _missing(report: Report) -> str:
    if not report.missing:
        return ""
    command = escape(install_command(report.missing))
    return f"""<p class="notice" role="note">{escape(lacks(report.missing))}
For the whole of it: <code>{command}</code>, then review again.</p>"""


def _overview(report: Report) -> str:
    counts = {severity: report.count(severity) for severity in Severity}
    affected = len({finding.path for finding in report.findings})
    lines = sum(review.metrics.lines for review in report.files)
    functions = sum(block.kind != "class" for review in report.files for block in review.functions)
    return f"""<section aria-labelledby="overview-title">
<h2 id="overview-title" class="visually-hidden">Overview</h2>
<div class="tiles">
{"".join(_tile(_number(n), f"{severity.value}s", severity.value if n else "") for severity, n in counts.items())}
{_tile(_number(lines), "lines")}
{"" if "radon" in report.missing else _tile(_number(functions), "functions")}
{_tile(f"{affected:,}<small> / {len(report.files):,}</small>", "files with findings")}
</div>
{"" if report.missing else _history_line(report.history)}
<div class="panels">
<div class="panel"><h3>What they are about</h3>{_category_bars(report.findings)}</div>
<div class="panel"><h3>Most frequent rules</h3>{_rule_bars(report.findings)}</div>
</div>
</section>"""


def _tile(value: str, label: str, tone: str = "") -> str:
    return f'<div class="tile {tone}"><b>{value}</b><span>{label}</span></div>'


def _history_line(history: History | None) -> str:
    if history is None:
        return '<p class="history muted">First review: the next one will show what is new and what is fixed.</p>'
    return (
        f'<p class="history"><span class="chip new">{_number(len(history.new))} new</span> '
        f'<span class="chip fixed">{_number(len(history.fixed))} fixed</span> '
        f'<span class="chip">{_number(history.unchanged)} unchanged</span> '
        f'<span class="muted">since {_moment(history.earlier_at)}</span></p>'
    )


def _category_bars(findings: Sequence[Finding]) -> str:
    groups: defaultdict[str, Counter[Severity]] = defaultdict(Counter)
    for finding in findings:
        groups[category(finding.rule)][finding.severity] += 1
    most = max((group.total() for group in groups.values()), default=0)
    ordered = sorted(groups.items(), key=lambda item: (-item[1].total(), item[0]))
    return _bars((name, "", group, most) for name, group in ordered)


def _rule_bars(findings: Sequence[Finding]) -> str:
    groups: defaultdict[str, Counter[Severity]] = defaultdict(Counter)
    for finding in findings:
        groups[finding.rule][finding.severity] += 1
    common = sorted(groups.items(), key=lambda item: (-item[1].total(), item[0]))[:_RULES_SHOWN]
    most = common[0][1].total() if common else 0
    return _bars((rule, rule_info(rule).why, group, most) for rule, group in common)


def _bars(rows: Iterable[tuple[str, str, Counter[Severity], int]]) -> str:
    """Bars of name, explanation, counts by severity, and the count of a full bar."""
    items = []
    for label, title, counts, most in rows:
        hint = f' title="{escape(title)}"' if title else ""
        parts = "".join(
            f'<i class="{severity.value}" style="width:{100 * counts[severity] / most:.2f}%"></i>'
            for severity in Severity
            if counts[severity]
        )
        items.append(
            f'<li{hint}><span class="name">{escape(label)}</span><span class="track">{parts}</span>'
            f'<span class="count">{_number(counts.total())}</span></li>'
        )
    return f'<ul class="bars">{"".join(items)}</ul>' if items else '<p class="muted">Nothing found.</p>'


def _first(report: Report) -> str:
    new = set(report.history.new) if report.history else set()
    cards = "".join(_card(ranked, ranked.finding.fingerprint in new) for ranked in report.first)
    body = f'<ol class="cards">{cards}</ol>' if cards else '<p class="empty">Nothing to fix. Well done.</p>'
    words = {1: "Fix this one first", 10: "Fix these ten first"}
    title = words.get(len(report.first), "Fix these first")
    return f'<section aria-labelledby="first"><h2 id="first">{title}</h2>{body}</section>'


def _card(ranked: RankedFinding, is_new: bool) -> str:
    finding = ranked.finding
    badge = '<span class="chip new">new</span>' if is_new else ""
    similar = ""
    if ranked.similar:
        similar = (
            f'<button type="button" class="link" data-rule="{escape(finding.rule)}">'
            f"{_number(ranked.similar)} more like it in {_plural(ranked.similar_files, 'file')}</button>"
        )
    return f"""<li class="card {finding.severity.value}">
<div class="place" aria-hidden="true">{ranked.place}</div>
<div class="body">
<p class="where"><span class="path">{_breakable(finding.path)}</span><span class="line">:{finding.line}</span></p>
<h3>{_prose(finding.message)}</h3>
<p class="reason">{_prose(ranked.reason)}</p>
{_source(ranked.excerpt, finding.line)}
<p class="meta"><span class="chip {finding.severity.value}">{finding.severity.value}</span>{badge}{_rule_link(finding)}
<span class="muted">score {ranked.score:g}</span>{similar}</p>
</div>
</li>"""


def _rule_link(finding: Finding) -> str:
    name = escape(f"{finding.tool} {finding.rule}")
    if not finding.url.startswith("https://"):
        return f'<span class="chip">{name}</span>'
    return f'<a class="chip" href="{escape(finding.url)}" rel="noreferrer">{name}</a>'


def _breakable(path: str) -> str:
    return escape(path).replace("/", "/<wbr>")


def _source(excerpt: Excerpt | None, line: int) -> str:
    if excerpt is None or not excerpt.lines:
        return ""
    indent = min((len(text) - len(text.lstrip()) for text in excerpt.lines if text.strip()), default=0)
    rows = []
    for number, text in enumerate(excerpt.lines, start=excerpt.first_line):
        mark = ' class="hit"' if number == line else ""
        rows.append(f'<span{mark}><i aria-hidden="true">{number}</i>{escape(text[indent:].rstrip())}\n</span>')
    return f'<pre class="source" tabindex="0" aria-label="Source around line {line}"><code>{"".join(rows)}</code></pre>'


# ---------------------------------------------------------------- tables, filled by the script


def _files_section(reviews: Sequence[FileReview]) -> str:
    return f"""<section aria-labelledby="files-title" class="scripted">
<h2 id="files-title">Files</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="files-title">
<table id="files">
<caption class="visually-hidden">Size, complexity and findings of {_plural(len(reviews), "file")}</caption>
<thead></thead><tbody></tbody></table></div>
<div class="pager" id="files-pager"></div>
</section>"""


def _findings_section(report: Report) -> str:
    toggles = "".join(
        f'<label class="toggle {severity.value}"><input type="checkbox" name="severity" value="{index}" checked>'
        f"{severity.value}s <span>{_number(report.count(severity))}</span></label>"
        for index, severity in enumerate(Severity)
    )
    only_new = '<label class="toggle"><input type="checkbox" id="only-new">only new</label>' if report.history else ""
    return f"""<section aria-labelledby="findings-title" class="scripted">
<h2 id="findings-title">All findings</h2>
<form id="filters" role="search" aria-label="Filter the findings">
<input type="search" id="query" placeholder="Search path, message, rule" aria-label="Search path, message, rule">
<select id="rule" aria-label="Rule"><option value="">all rules</option></select>
<fieldset><legend class="visually-hidden">Severity</legend>{toggles}{only_new}</fieldset>
</form>
<p id="shown" class="muted" role="status"></p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="findings-title">
<table id="findings"><caption class="visually-hidden">Findings</caption><thead></thead><tbody></tbody></table></div>
<div class="pager" id="findings-pager"></div>
<noscript><p class="empty">The tables need JavaScript; report.json and review.sarif hold the same.</p></noscript>
</section>"""


def _fixed_section(history: History | None) -> str:
    if history is None or not history.fixed:
        return ""
    shown = history.fixed[:_FIXED_SHOWN]
    rows = "".join(
        f'<li><span class="chip">{escape(gone.rule)}</span> '
        f'<span class="path">{_breakable(gone.path)}:{gone.line}</span></li>'
        for gone in shown
    )
    rest = len(history.fixed) - len(shown)
    more = f'<p class="muted">and {_number(rest)} more</p>' if rest else ""
    return f"""<section><details><summary><h2>Fixed since the last review ({_number(len(history.fixed))})</h2></summary>
<ul class="fixed-list">{rows}</ul>{more}</details></section>"""


def _footer(report: Report) -> str:
    tools = " · ".join(f"{escape(name)} {escape(version)}" for name, version in sorted(report.tools.items()))
    return f"<footer><p>Reviewed by an agentmesh swarm{' with ' + tools if tools else ''}.</p></footer>"


# ---------------------------------------------------------------- what the script needs


def _data(report: Report) -> dict[str, Any]:
    """Columns instead of objects: a tenth of the size, and 10,000 rows parse in a few milliseconds."""
    paths = {review.path: index for index, review in enumerate(report.files)}
    for finding in report.findings:
        paths.setdefault(finding.path, len(paths))
    rules = {rule: index for index, rule in enumerate(sorted({finding.rule for finding in report.findings}))}
    urls = {finding.rule: finding.url for finding in report.findings if finding.url.startswith("https://")}
    severities = {severity: index for index, severity in enumerate(Severity)}
    new = set(report.history.new) if report.history else set()
    counts: defaultdict[str, Counter[Severity]] = defaultdict(Counter)
    for finding in report.findings:
        counts[finding.path][finding.severity] += 1
    return {
        "paths": list(paths),
        "rules": [[rule, rule_info(rule).why, urls.get(rule, "")] for rule in rules],
        "severities": [severity.value for severity in Severity],
        "findings": [
            [
                severities[finding.severity],
                paths[finding.path],
                finding.line,
                finding.column,
                rules[finding.rule],
                finding.message,
                " + ".join(dict.fromkeys((finding.tool, *(origin.tool for origin in finding.also)))),
                int(finding.fingerprint in new),
            ]
            for finding in report.findings
        ],
        "files": [_file_row(review, paths[review.path], counts[review.path]) for review in report.files],
    }


def _file_row(review: FileReview, path: int, counts: Counter[Severity]) -> list[Any]:
    worst = review.worst_function
    return [
        path,
        review.metrics.lines,
        sum(block.kind != "class" for block in review.functions),
        worst.complexity if worst else 0,
        f"{worst.qualified_name}:{worst.line}" if worst else "",
        *(counts[severity] for severity in Severity),
    ]

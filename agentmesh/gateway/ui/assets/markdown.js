// Markdown to DOM nodes. Text only ever becomes text nodes and attributes become checked values: there is no HTML
// in between, so nothing that an agent or a user writes can become markup.

const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

const INLINE = new RegExp(
  [
    "(?<code>(?<ticks>`+)(?<codeText>.+?)\\k<ticks>(?!`))",
    "(?<link>!?\\[(?<linkText>[^\\]\\n]*)\\]\\((?<linkTo>[^\\s()]+(?:\\([^\\s()]*\\))?)(?:\\s+\"[^\"\\n]*\")?\\))",
    "(?<auto><(?<autoTo>https?:\\/\\/[^\\s<>]+)>)",
    "(?<bare>\\bhttps?:\\/\\/[^\\s<>\"'`]*[^\\s<>\"'`.,;:!?)\\]}])",
    "(?<strong>\\*\\*(?=\\S)(?<strongText>.+?\\S|\\S)\\*\\*(?!\\*)|__(?=\\S)(?<strongText2>.+?\\S|\\S)__(?!\\w))",
    "(?<strike>~~(?=\\S)(?<strikeText>.+?)~~)",
    "(?<em>\\*(?=[^\\s*])(?<emText>[^*\\n]*?[^\\s*])\\*(?!\\*)|(?<![\\w_])_(?=[^\\s_])(?<emText2>[^_\\n]*?[^\\s_])_(?!\\w))",
    "(?<escape>\\\\(?<escaped>[\\\\`*_{}\\[\\]()#+\\-.!~|<>]))",
    "(?<br>(?: {2,}|\\\\)?\\n)",
  ].join("|"),
  "s",
);

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function link(to, children) {
  if (!SAFE_LINK.test(to)) return children;
  const anchor = element("a", ...children);
  anchor.href = to;
  anchor.target = "_blank";
  anchor.rel = "noopener noreferrer";
  return [anchor];
}

/** The nodes of a line or paragraph. */
export function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  while (rest) {
    const found = depth < 8 ? INLINE.exec(rest) : null;
    if (!found) {
      nodes.push(rest);
      break;
    }
    if (found.index) nodes.push(rest.slice(0, found.index));
    nodes.push(...spanOf(found.groups, depth + 1));
    rest = rest.slice(found.index + found[0].length);
  }
  return nodes;
}

function spanOf(groups, depth) {
  if (groups.code) return [element("code", groups.codeText.replace(/^ (.*\S.*) $/s, "$1"))];
  if (groups.link) return link(groups.linkTo, inline(groups.linkText || groups.linkTo, depth));
  if (groups.auto) return link(groups.autoTo, [groups.autoTo]);
  if (groups.bare) return link(groups.bare, [groups.bare]);
  if (groups.strong) return [element("strong", ...inline(groups.strongText ?? groups.strongText2, depth))];
  if (groups.strike) return [element("s", ...inline(groups.strikeText, depth))];
  if (groups.em) return [element("em", ...inline(groups.emText ?? groups.emText2, depth))];
  if (groups.escape) return [groups.escaped];
  return [element("br")];
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;

/** The source, cut into blocks: pieces that are rendered on their own. While text comes, only the last changes. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const start = at;
    const fence = FENCE.exec(lines[at]);
    if (fence) {
      at += 1;
      while (at < lines.length && !closes(lines[at], fence[1])) at += 1;
      at = Math.min(at + 1, lines.length);
    } else if (HEADING.test(lines[at]) || RULE.test(lines[at])) {
      at += 1;
    } else if (ITEM.test(lines[at])) {
      at += 1;
      while (at < lines.length && goesOnInList(lines, at)) at += 1;
    } else {
      at += 1;
      while (at < lines.length && lines[at].trim() && !startsBlock(lines, at)) at += 1;
    }
    found.push(lines.slice(start, at).join("\n"));
  }
  return found;
}

function closes(line, fence) {
  const trimmed = line.trim();
  return trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
}

function startsBlock(lines, at) {
  const quoted = QUOTE.test(lines[at]) !== QUOTE.test(lines[at - 1]);
  return FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || ITEM.test(lines[at]) || quoted;
}

function goesOnInList(lines, at) {
  if (lines[at].trim()) {
    return ITEM.test(lines[at]) || /^\s{2,}/.test(lines[at]) || (lines[at - 1].trim() && !startsBlock(lines, at));
  }
  const next = lines.slice(at).find((line) => line.trim());
  return next !== undefined && (ITEM.test(next) || /^\s{2,}/.test(next));
}

/** The node of one block. */
export function block(source, depth = 0) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return codeBlock(lines, fence);
  const heading = HEADING.exec(lines[0]);
  if (heading) return element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2]));
  if (RULE.test(lines[0])) return element("hr");
  if (QUOTE.test(lines[0]) && depth < 6) {
    const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
    return element("blockquote", ...blocks(inner).map((one) => block(one, depth + 1)));
  }
  if (ITEM.test(lines[0]) && depth < 6) return list(lines, depth);
  if (lines.length > 1 && lines[0].includes("|") && TABLE_RULE.test(lines[1])) return table(lines);
  return element("p", ...inline(source));
}

function codeBlock(lines, fence) {
  const closed = lines.length > 1 && closes(lines.at(-1), fence[1]);
  const code = element("code", lines.slice(1, closed ? -1 : undefined).join("\n"));
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.className = "copy";
  copy.dataset.copy = "code";
  const head = element("div", element("span", fence[2] || "text"), copy);
  head.className = "code-head";
  const frame = element("div", head, element("pre", code));
  frame.className = "code";
  return frame;
}

function list(lines, depth) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const ordered = /\d/.test(marker);
  const node = document.createElement(ordered ? "ol" : "ul");
  if (ordered && parseInt(marker, 10) !== 1) node.start = parseInt(marker, 10);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length + 1) items.push([item[3]]);
    else items.at(-1).push(line.replace(new RegExp(`^\\s{0,${indent.length + marker.length + 1}}`), ""));
  }
  for (const item of items) {
    const [first, ...more] = blocks(item.join("\n"));
    const li = document.createElement("li");
    if (first !== undefined) li.append(...(isPlain(first) ? inline(first) : [block(first, depth + 1)]));
    li.append(...more.map((one) => block(one, depth + 1)));
    node.append(li);
  }
  return node;
}

function isPlain(source) {
  const line = source.split("\n")[0];
  return !(FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line));
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines) {
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : ""));
  const row = (line, name) => {
    const tr = document.createElement("tr");
    cells(line).forEach((cell, column) => {
      const node = element(name, ...inline(cell));
      if (sides[column]) node.className = `to-${sides[column]}`;
      tr.append(node);
    });
    return tr;
  };
  const body = element("tbody", ...lines.slice(2).map((line) => row(line, "td")));
  const frame = element("div", element("table", element("thead", row(lines[0], "th")), body));
  frame.className = "table";
  frame.tabIndex = 0;
  return frame;
}

/** Shows `text` in `parent`; what did not change since the last time stays. */
export function show(parent, text) {
  const wanted = blocks(text);
  const shown = parent.blocks ?? [];
  let same = 0;
  while (same < wanted.length && wanted[same] === shown[same]) same += 1;
  while (parent.childNodes.length > same) parent.lastChild.remove();
  for (const source of wanted.slice(same)) parent.append(block(source));
  parent.blocks = wanted;
}

// What both pages share: the key of the gateway, the theme, and faces of agents.

const KEY = "agentmesh.key";

export const $ = (id) => document.getElementById(id);

/** Headers of a request: the key, if one was given. It lives in the session storage, so only in this tab. */
export function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Asks for the key; resolves when one was given. */
export function askForKey(problem = "") {
  const dialog = $("key");
  $("key-problem").textContent = problem;
  $("key-problem").hidden = !problem;
  if (!dialog.open) dialog.showModal();
  dialog.oncancel = (event) => event.preventDefault(); // without a key there is nothing to see
  return new Promise((resolve) => {
    dialog.onclose = () => {
      sessionStorage.setItem(KEY, $("token").value.trim());
      $("token").value = "";
      resolve();
    };
  });
}

/** A request with the key; asks for one, again and again, if it is refused. */
export async function request(address, options = {}) {
  for (;;) {
    const response = await fetch(address, { ...options, headers: { ...options.headers, ...authorization() } });
    if (response.status !== 401) return response;
    await askForKey(sessionStorage.getItem(KEY) ? "That key was refused." : "");
  }
}

/** What went wrong, in words, from an error answer of the gateway. */
export async function problemOf(response) {
  try {
    const { error } = await response.json();
    if (error?.message) return error.message;
  } catch {
    // not JSON: an answer of something in between
  }
  return `The gateway answered with status ${response.status}.`;
}

export function face(node, name) {
  const words = name.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const letters = words.length > 1 ? words[0][0] + words[1][0] : name.slice(0, 2);
  node.textContent = letters.toUpperCase();
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 6;
  node.dataset.tint = String(sum);
}

function applyTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

applyTheme(localStorage.getItem("agentmesh.theme"));

export function themeButton() {
  $("theme").addEventListener("click", () => {
    const chosen = document.documentElement.dataset.theme;
    const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    localStorage.setItem("agentmesh.theme", dark ? "light" : "dark");
    applyTheme(dark ? "light" : "dark");
  });
}

import { $, face, problemOf, request, themeButton } from "/ui/assets/common.js";

function card(agent) {
  const avatar = document.createElement("span");
  avatar.className = "avatar";
  avatar.setAttribute("aria-hidden", "true");
  face(avatar, agent.id);
  const name = document.createElement("strong");
  name.textContent = agent.id;
  const about = document.createElement("span");
  about.className = "about";
  about.textContent = agent.description || "No description";
  const text = document.createElement("span");
  text.className = "text";
  text.append(name, about);
  const link = document.createElement("a");
  link.href = `/ui/chat/${encodeURIComponent(agent.id)}`;
  link.append(avatar, text);
  const item = document.createElement("li");
  item.append(link);
  return item;
}

async function look() {
  try {
    const response = await request("/v1/models");
    if (!response.ok) throw new Error(await problemOf(response));
    const { data } = await response.json();
    $("agents").replaceChildren(...data.map(card));
    $("state").textContent = data.length
      ? ""
      : "No agent that can be chatted with is running. An agent can be once it takes Chat or Prompt.";
  } catch (error) {
    $("state").textContent = error instanceof TypeError ? "The gateway cannot be reached. Trying again …" : error.message;
  }
  setTimeout(look, 5000);
}

themeButton();
void look();

"""The chat page in a real browser: whatever happens to it, what it shows in the end is what is stored."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentmesh import Mesh, ports
from agentmesh.agents.chat import Conversations
from agentmesh.chat import transcript
from agentmesh.lifeline import child_preexec
from tests.chat.agents import Careful, Counter, Painter, Parrot, Stuck, tokens
from tests.chat.conftest import StartDoor
from tests.chat.test_conversations import key
from tests.harness.fixtures import SpawnProcess
from tests.harness.process import Process
from tests.harness.waiting import eventually

playwright_api: Any = pytest.importorskip("playwright.async_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
SCREENSHOTS = os.environ.get("AGENTMESH_TEST_SCREENSHOTS", "")
"""A folder for pictures of the page, for whoever wants to look at it."""

LONG = 30_000
"""Milliseconds: a machine may be busy."""

Page = Any

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a running browser listens; one for all tests."""
    assert CHROMIUM is not None
    profile = tmp_path_factory.mktemp("chromium")
    browser = subprocess.Popen(
        [CHROMIUM, *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=child_preexec(signal.SIGKILL),
    )
    assert browser.stderr is not None
    for line in browser.stderr:
        if found := re.search(r"ws://\S+", line):
            break
    else:
        pytest.fail("Chromium did not start")
    yield found[0]
    os.killpg(browser.pid, signal.SIGKILL)
    browser.wait()
    browser.stderr.close()


@dataclass
class Site:
    """A gateway in a process of its own, and the pages that look at it."""

    mesh: Mesh
    browser: Any
    spawn: SpawnProcess
    reserved: ports.Reserved
    process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.reserved.port}"

    async def start(self) -> None:
        """The gateway; again on the same port, if it was killed."""
        arguments = ("--nats", self.mesh.transport.url, "--tenant", self.mesh.subjects.tenant)
        self.process = await self.spawn("agentmesh.gateway", *arguments, "--http", f"127.0.0.1:{self.reserved.port}")
        await self.process.line_matching("http ready", timeout=30)

    async def window(self, address: str, **more: Any) -> Page:
        """A browser window of its own; with `viewport` and the like."""
        context = await self.browser.new_context(**more)
        page = await context.new_page()
        page.set_default_timeout(LONG)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        await page.goto(address if "://" in address else self.url + address)
        return page

    async def stored(self, page: Page) -> str:
        """The answers of the conversation that a page shows, as they are stored."""
        conversation = page.url.rpartition("c=")[2]
        read = await transcript(self.mesh.streams, conversation)
        return " ".join(
            word for message in read.messages() if message.role == "assistant" for word in message.content.split()
        )


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Any]:
    """Connected to the one browser; its windows are closed with the test."""
    async with playwright_api.async_playwright() as playwright:
        connected = await playwright.chromium.connect_over_cdp(chromium)
        yield connected
        for context in connected.contexts[1:]:
            await context.close()


@pytest.fixture
async def site(mesh: Mesh, browser: Any, spawn_process: SpawnProcess) -> Site:
    """A gateway, the relay, and agents."""
    await mesh.spawn(Conversations)
    for agent in (Counter, Painter, Parrot):
        await mesh.spawn(agent)
    one = Site(mesh, browser, spawn_process, ports.reserve())
    await one.start()
    return one


async def say(page: Page, text: str) -> None:
    """Type it, and press Enter."""
    await page.fill("#input", text)
    await page.press("#input", "Enter")


async def sees(page: Page, text: str) -> None:
    """Wait until the answer has that word."""
    await page.wait_for_function(
        "text => [...document.querySelectorAll('.answer .body')].some(b => b.innerText.split(/\\s+/).includes(text))",
        arg=text,
        polling=20,
    )


async def done(page: Page, status: str = "done", count: int = 1) -> None:
    """Wait until that many answers have ended so."""
    selector = f'.answer[data-status="{status}"]'
    await page.wait_for_function(f"n => document.querySelectorAll('{selector}').length === n", arg=count, polling=20)


async def shown(page: Page) -> str:
    """All answers, word by word."""
    text = await page.evaluate("[...document.querySelectorAll('.answer .body')].map(b => b.innerText).join(' ')")
    return " ".join(str(text).split())


async def picture(page: Page, name: str) -> None:
    """For whoever wants to look."""
    if SCREENSHOTS:
        await page.screenshot(path=str(Path(SCREENSHOTS) / f"{name}.png"))


@pytest.mark.seed("D1", "D15")
async def test_tokens_come_one_by_one_and_are_there_after_a_reload(site: Site) -> None:
    page = await site.window("/ui/chat/counter")

    await say(page, "tokens=12 pace=20")
    await sees(page, "t0")
    await done(page)
    await page.reload()
    await done(page)

    assert await shown(page) == await site.stored(page) == "".join(tokens(12)).strip()
    assert await page.inner_text(".user .body") == "tokens=12 pace=20"
    assert await page.title() == "counter · agentmesh"
    assert page.problems == []


@pytest.mark.slow
@pytest.mark.seed("D1", "D26")
async def test_a_page_reloaded_at_random_tokens_shows_what_is_stored(site: Site) -> None:
    page = await site.window("/ui/chat/counter")
    await say(page, "tokens=120 pace=40")

    for cut in sorted(random.Random(3).sample(range(3, 100), 6)):
        await sees(page, f"t{cut}")
        await page.reload()
    await done(page)

    assert await shown(page) == await site.stored(page) == "".join(tokens(120)).strip()


@pytest.mark.slow
@pytest.mark.seed("D26")
async def test_a_page_that_was_offline_for_a_while_shows_what_is_stored(site: Site) -> None:
    page = await site.window("/ui/chat/counter")
    await say(page, "tokens=100 pace=30")
    await sees(page, "t5")

    await page.context.set_offline(True)
    await page.wait_for_selector('#connection[data-state="offline"]')
    assert await page.is_visible("#notice")
    await picture(page, "offline")
    await asyncio.sleep(1.5)  # the answer goes on without it
    await page.context.set_offline(False)
    await done(page)

    assert await page.get_attribute("#connection", "data-state") == "live"
    assert await page.is_hidden("#notice")
    assert await shown(page) == await site.stored(page) == "".join(tokens(100)).strip()


@pytest.mark.slow
@pytest.mark.seed("D1")
async def test_a_gateway_killed_in_the_middle_costs_the_page_nothing(site: Site) -> None:
    page = await site.window("/ui/chat/counter")
    await say(page, "tokens=100 pace=30")
    await sees(page, "t5")

    assert site.process is not None
    site.process.kill9()
    await page.wait_for_selector('#connection[data-state="offline"]')
    await site.start()
    await done(page)

    assert await shown(page) == await site.stored(page) == "".join(tokens(100)).strip()
    assert await page.evaluate("document.querySelectorAll('.message').length") == 2


@pytest.mark.slow
@pytest.mark.seed("D7", "D13")
async def test_two_windows_are_in_step(site: Site) -> None:
    one = await site.window("/ui/chat/counter")
    await say(one, "tokens=40 pace=30")
    await sees(one, "t3")
    other = await site.window(one.url)
    await sees(other, "t10")
    await done(one)
    await done(other)
    await say(other, "tokens=5")
    await done(one, count=2)
    await done(other, count=2)

    assert await shown(one) == await shown(other) == await site.stored(one)
    for page in (one, other):
        assert await page.evaluate("[...document.querySelectorAll('.user .body')].map(b => b.innerText)") == [
            "tokens=40 pace=30",
            "tokens=5",
        ]


@pytest.mark.slow
@pytest.mark.seed("D30")
async def test_the_stop_button_stops_the_agent(site: Site, mesh: Mesh) -> None:
    stopped = asyncio.Event()
    await mesh.spawn(Stuck, stopped)
    page = await site.window("/ui/chat/stuck")

    await say(page, "go")
    await sees(page, "well")
    await page.click("#stop")
    await done(page, "cancelled")

    await asyncio.wait_for(stopped.wait(), 30)
    assert await page.is_visible("text=Stopped")
    assert await page.is_visible("#send")
    await say(page, "again")
    await page.wait_for_selector("#stop:visible")
    await page.keyboard.press("Escape")
    await done(page, "cancelled", 2)
    assert await shown(page) == await site.stored(page)


@pytest.mark.seed("D26")
async def test_everything_an_answer_has_is_shown_and_nothing_becomes_markup(site: Site) -> None:
    page = await site.window("/ui/chat/painter", viewport={"width": 1280, "height": 860})

    await say(page, "<img src=x onerror='window.hacked=1'> **hi**")
    await done(page)
    await picture(page, "everything-1280")

    body = page.locator(".answer .body")
    assert await page.evaluate("window.hacked") is None
    assert await page.inner_text(".user .body") == "<img src=x onerror='window.hacked=1'> **hi**"
    assert await body.locator("script, img, u").count() == 0
    assert await body.locator("strong, em, s, h4, ol ul, table td.to-end, blockquote").count() == 8
    assert await body.locator(".code pre").inner_text() == "<b>not bold</b>"
    links = await page.evaluate("[...document.querySelectorAll('.answer a')].map(a => [a.href, a.rel])")
    assert {link for link, _ in links} == {
        "https://example.com/",
        "https://example.org/x",
        "https://example.com/a",
    }
    assert {rel for _, rel in links} == {"noopener noreferrer"}
    await page.click("text=Reasoning")
    assert await page.inner_text(".thought em") == "look"
    await page.click("text=search")
    assert '"streams"' in await page.inner_text(".tool pre")
    assert '"a.md"' in await page.inner_text(".tool pre.result")
    assert await page.locator(".cites li").count() == 2
    assert await page.inner_text(".usage") == "1,234 tokens"
    assert "not shown" not in await page.inner_text("#log")
    await picture(page, "everything-open-1280")


@pytest.mark.slow
async def test_a_tool_that_needs_permission_is_allowed_or_denied_on_the_page(site: Site, mesh: Mesh) -> None:
    await mesh.spawn(Careful)
    page = await site.window("/ui/chat/careful")

    await say(page, "erase everything")
    await page.wait_for_selector("text=wants your permission")
    await picture(page, "permission")
    assert await shown(page) == ""
    await page.reload()
    await page.click("button:text('Allow')")
    await done(page)
    await say(page, "again")
    await page.click("button:text('Deny')")
    await done(page, count=2)

    assert await shown(page) == await site.stored(page) == "All erased. All kept."
    assert await page.evaluate("[...document.querySelectorAll('.tool .state')].map(s => s.textContent)") == [
        "done",
        "failed",
    ]
    assert await page.locator(".ask").count() == 0


async def test_the_pages_allow_nothing_from_elsewhere(start_door: StartDoor) -> None:
    http = (await start_door(keys=(key("page"),))).http
    page, script, missing = [
        await http.get(path) for path in ("/ui/chat/counter", "/ui/assets/chat.js", "/ui/assets/..%2fpages.py")
    ]

    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"(src|href)=\"(https?:)?//", page.text)
    assert "style=" not in page.text
    assert script.headers["content-type"].startswith("text/javascript")
    assert "innerHTML" not in script.text
    assert missing.status_code == 404


@pytest.mark.slow
async def test_the_page_is_usable_on_a_phone(site: Site) -> None:
    page = await site.window("/ui/", viewport={"width": 390, "height": 844}, has_touch=True)
    await picture(page, "index-390")
    await page.click("text=counter")
    await page.wait_for_selector('#connection[data-state="live"]')
    await picture(page, "empty-390")
    await page.fill("#input", "tokens=300")
    await page.tap("#send")
    await done(page)
    await picture(page, "done-390")

    assert await shown(page) == await site.stored(page)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    assert await page.evaluate("document.getElementById('scroll').scrollTop") > 0
    await page.tap("#menu")
    await page.wait_for_selector("#recent a:visible")
    await picture(page, "menu-390")
    await page.tap("#new")
    await page.wait_for_selector("#empty:visible")
    assert await page.locator(".message").count() == 0
    await page.tap("#menu")
    await page.tap("#recent a")
    await done(page)
    sizes = await page.evaluate(
        "[...document.querySelectorAll('button:not([hidden])')].filter(b => b.offsetParent && !b.dataset.action)"
        ".map(b => [b.id, b.offsetWidth, b.offsetHeight])"
    )
    assert [size for size in sizes if min(size[1:]) < 36] == []


@pytest.mark.slow
async def test_enter_sends_and_shift_enter_does_not(site: Site) -> None:
    page = await site.window("/ui/chat/parrot")

    await page.focus("#input")
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    assert await page.locator(".message").count() == 0
    await page.keyboard.press("Enter")
    await done(page)

    assert await page.inner_text(".user .body") == "one\ntwo"
    assert await page.input_value("#input") == ""
    assert await shown(page) == "ONE TWO"
    unlabelled = await page.evaluate(
        "[...document.querySelectorAll('button, textarea, input, a')].filter(e => e.offsetParent"
        " && !(e.getAttribute('aria-label') || e.innerText.trim() || e.labels?.length)).length"
    )
    assert unlabelled == 0


@pytest.mark.slow
async def test_a_page_of_a_gateway_with_keys_asks_for_one(site: Site, start_door: StartDoor) -> None:
    door = await start_door(keys=(key("page"),))
    page = await site.window(f"{door.url}/ui/chat/parrot")
    await page.wait_for_selector("#key[open]")
    await picture(page, "key-1280")

    await page.fill("#token", "a-wrong-one")
    await page.press("#token", "Enter")
    await page.wait_for_selector("text=That key was refused.")
    await page.fill("#token", "token-of-page")
    await page.press("#token", "Enter")
    await page.wait_for_selector('#connection[data-state="live"]')
    await say(page, "hello")
    await done(page)
    await page.reload()
    await done(page)

    assert await shown(page) == "HELLO"
    assert "token-of-page" not in page.url


@pytest.mark.slow
@pytest.mark.seed("D1", "D15")
async def test_an_event_source_goes_on_by_itself_and_stops_at_the_end(site: Site) -> None:
    page = await site.window("/ui/")
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as http:
        said = (await http.post("/chat", json={"message": "tokens=60 pace=30", "agent": "counter"})).json()
    await page.evaluate(
        """address => {
            window.text = ""; window.ends = 0; window.opens = 0;
            window.source = new EventSource(address);
            source.onopen = () => opens += 1;
            source.onmessage = event => {
                const chunk = JSON.parse(event.data);
                if (chunk.type === "text") text += chunk.content;
            };
            source.addEventListener("end", () => ends += 1);
        }""",
        said["stream"],
    )
    await page.wait_for_function("() => text.includes('t5 ')", polling=20)

    assert site.process is not None
    site.process.kill9()
    await site.start()

    await page.wait_for_function("() => ends === 1", polling=20)
    await page.wait_for_function("() => source.readyState === EventSource.CLOSED", polling=50)  # by the 204
    assert await page.evaluate("text") == "".join(tokens(60))
    assert await page.evaluate("opens") == 2


@pytest.mark.slow
async def test_what_could_not_be_sent_is_kept_and_sent_once(site: Site) -> None:
    page = await site.window("/ui/chat/counter")
    await page.wait_for_selector('#connection[data-state="live"]')
    assert site.process is not None
    site.process.kill9()
    await page.wait_for_selector('#connection[data-state="offline"]')

    await say(page, "tokens=3")
    await page.wait_for_selector("text=Not sent")
    assert await page.input_value("#input") == "tokens=3"
    await picture(page, "not-sent")
    await site.start()
    await page.wait_for_selector('#connection[data-state="live"]')
    await page.press("#input", "Enter")
    await done(page)

    assert await shown(page) == "t0 t1 t2"
    assert await eventually(lambda: site.stored(page)) == "t0 t1 t2"
    assert await page.locator(".user").count() == 1

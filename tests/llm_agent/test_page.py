"""The chat page asks a person before the agent does what it must not do alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chat.test_browser import CHROMIUM, Site, browser, chromium, done, picture, say, shown, site
from tests.llm_agent.conftest import Spawn
from tests.llm_agent.node import Helper
from tests.llm_agent.puppet import Puppet, call, script
from tests.llm_agent.test_turns import lines

__all__ = ["browser", "chromium", "site"]

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"), pytest.mark.slow]


async def test_a_call_is_allowed_or_refused_on_the_page_also_after_a_reload(
    site: Site, spawn: Spawn, puppet: Puppet, tmp_path: Path
) -> None:
    await spawn(Helper)
    ledger = tmp_path / "ledger"
    page = await site.window("/ui/chat/helper")
    mail = call("send_mail", to="bob", ledger=str(ledger))

    await say(page, script({"call": [mail]}, {"say": "Mail is sent."}))
    await page.wait_for_selector(".ask")
    await picture(page, "consent")
    assert lines(ledger) == []
    await page.reload()
    await page.click(".ask >> text=Allow")
    await done(page)
    assert lines(ledger) == ["mail bob"]
    assert await page.query_selector(".ask") is None

    await say(page, script({"call": [mail]}, {"say": "Mail was refused."}))
    await page.click(".ask >> text=Deny")
    await done(page, count=2)
    assert lines(ledger) == ["mail bob"]
    assert await shown(page) == await site.stored(page) == "Mail is sent. Mail was refused."
    assert page.problems == []

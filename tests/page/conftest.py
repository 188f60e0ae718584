"""A browser, where this machine has one; BROWSER_TESTS=1 says that it must."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving import Server, served

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        assert not os.environ.get("BROWSER_TESTS"), f"BROWSER_TESTS is set, and there is none of {', '.join(NAMES)}"
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: object, run_dir: Path, data_dir: Path) -> Iterator[Server]:
    with served(run_dir, data_dir) as server:
        yield server


@pytest.fixture
def visit(browser: object, server: Server) -> Iterator[Callable]:
    """Open the page as somebody new; fail where its console has an error that is not expected."""
    contexts, said = [], []

    def visit(hash: str = "", expected: str | None = None, context: object = None, address: str | None = None,
              **settings: object) -> object:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") and not (
            expected and expected in message.text) else None)
        page.goto((address or server.address) + hash)
        page.wait_for_selector("#list .score, #list-none:not([hidden])")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not said

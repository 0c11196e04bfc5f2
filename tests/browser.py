"""A real Chromium for tests of pages, driven by its debugging protocol over one websocket.

    def test_a_page(browser):                      # one browser for all tests of a worker
        with browser.open(url, width=390, dark=True) as page:
            page.wait("document.querySelectorAll('tr').length > 3")
            assert "done" in page.text() and page.errors == []
            page.picture(Path("page.png"))

`with Browser() as b:` starts one by hand. Where no Chromium is installed the tests are left out and say so;
MICROSTAGES_REQUIRE_BROWSER=1 makes them fail. MICROSTAGES_BROWSER names another program.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 90.0  # seconds: machines under load are slow, and nothing here waits longer than it must
FLAGS = (
    "--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--mute-audio", "--password-store=basic",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--no-proxy-server",
)  # fmt: skip


def program() -> str:
    """The browser that is installed, or nothing."""
    wanted = os.environ.get("MICROSTAGES_BROWSER")
    return next((found for name in ([wanted] if wanted else NAMES) if (found := shutil.which(name))), "")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for all tests of this process."""
    if not program():
        if os.environ.get("MICROSTAGES_REQUIRE_BROWSER") == "1":
            pytest.fail("pages are not tested: no Chromium is installed")
        pytest.skip("PAGES NOT TESTED: no Chromium is installed")
    with Browser() as made:
        yield made


class Browser:
    """A running browser without a window, with a profile of its own that is gone afterwards."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="browser-"))
        self._number = 0
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        from websocket import create_connection

        log = self.folder / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [program(), *FLAGS, f"--user-data-dir={self.folder / 'profile'}", "about:blank"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        port = self.folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not (port.exists() and port.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"the browser did not start:\n{log.read_text()[-2000:] if log.exists() else ''}")
            time.sleep(0.02)
        number, path = port.read_text().split()[:2]
        self._socket = create_connection(
            f"ws://127.0.0.1:{number}{path}", timeout=PATIENCE, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.call("Browser.close")
            self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(OSError):  # its group holds its children too
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, url: str, width: int = 1200, height: int = 800, dark: bool = False, scripts: bool = True) -> Page:
        """A page in a context of its own (no cookies of other pages), loaded. `width` and `height` in CSS pixels; one
        narrower than 600 is a phone."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        phone = width < 600
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        page.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        if not scripts:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.go(url)
        return page

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. What the pages report meanwhile is theirs."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._socket.send(json.dumps({**message, "sessionId": session} if session else message))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error'].get('message')}")
                return dict(answer["result"])
            if page := self._pages.get(answer.get("sessionId", "")):
                page.hear(answer.get("method", ""), answer.get("params", {}))
        raise TimeoutError(f"{method}: the browser does not answer")


class Page:
    """One page. Use it as a context manager, or `close` it: what is left open goes on loading."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self._errors: list[str] = []
        self._loaded = 0

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._browser._pages.pop(self._session, None)
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, for this page."""
        return self._browser.call(method, self._session, **params)

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """An event of the protocol."""
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self._errors.append(str(details.get("exception", {}).get("description") or details.get("text")))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self._errors.append(" ".join(str(a.get("value", a.get("description", ""))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]  # refused by the policy, not found, a bad certificate, …
            self._errors.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def go(self, url: str) -> None:
        """Load another page, and wait until it is loaded."""
        before = self._loaded
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        end = time.monotonic() + PATIENCE
        while self._loaded == before:
            if time.monotonic() > end:
                raise TimeoutError(f"{url}: it does not load")
            self._browser.call("Browser.getVersion")  # any answer brings the events before it
            time.sleep(0.01)

    @property
    def errors(self) -> list[str]:
        """What the page's console holds against it so far: errors, warnings, exceptions, what could not be loaded."""
        self.eval("0")
        return list(self._errors)

    def eval(self, js: str) -> Any:
        """The value of an expression; promises are waited for. Raises RuntimeError for what it throws."""
        done = self.call("Runtime.evaluate", expression=js, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise RuntimeError(str(details.get("exception", {}).get("description") or details.get("text")))
        return done["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """What people read in the first element of a selector."""
        return str(
            self.eval(f"(e => e ? e.innerText ?? e.textContent : '')(document.querySelector({json.dumps(selector)}))")
        )

    def wait(self, js: str) -> Any:
        """Wait until an expression is true (on a page that is just loading too), and return it; of an element,
        true."""
        end = time.monotonic() + PATIENCE
        why: object = "it is not true"
        while time.monotonic() < end:
            try:
                if found := self.eval(
                    f"(async () => {{ const v = await ({js}); return v instanceof Element || v; }})()"
                ):
                    return found
            except RuntimeError as error:
                why = error
            time.sleep(0.03)
        raise AssertionError(f"{js}: {why}\nerrors: {self.errors}\n{self.text()[:2000]}")

    def click(self, selector: str) -> None:
        """Click on the first element of a selector, as soon as there is one."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        event = "new MouseEvent('click', {bubbles: true, cancelable: true})"  # an SVG element has no click()
        self.eval(f"document.querySelector({json.dumps(selector)}).dispatchEvent({event})")

    def picture(self, path: Path | str, whole: bool = True) -> Path:
        """Write a PNG of the whole page, or of what is seen of it."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shown["data"]))
        return Path(path)

"""Pages as a real browser shows them: Debian's chromium without a window, at the widths of a laptop and a telephone.

It is driven over a pipe by the DevTools protocol, which takes nothing but chromium itself. EDM3D_BROWSER=required turns
a missing browser from a skipped test into a failed one.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 390)
PATIENCE = 60  # seconds for an answer
TROUBLE = {"Runtime.exceptionThrown", "Log.entryAdded"}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
         "--no-first-run", "--disable-background-networking", "--disable-extensions")
LOOK = """
(async () => {
  const room = document.documentElement.clientWidth, right = (x) => x.getBoundingClientRect().right;
  const over = (x) => right(x) > room + 1 || x.scrollWidth > x.clientWidth + 1;
  const images = [...document.images];
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  return {
    width: innerWidth, room, scroll: document.documentElement.scrollWidth, images: images.length,
    broken: images.filter((image) => !image.naturalWidth).length,
    blown: images.filter((x) => x.naturalWidth && x.clientWidth > x.naturalWidth + 1).map((image) => image.alt),
    tables: [...document.querySelectorAll("table")].filter(over).map((x) => x.textContent.slice(0, 60)),
    wide: [...document.querySelectorAll("main *")].filter((x) => right(x) > room + 1)
      .map((x) => x.outerHTML.slice(0, 99)),
    links: [...document.querySelectorAll("nav a")].filter((a) => !document.querySelector(a.hash)).length,
    loaded: performance.getEntriesByType("resource").map((x) => x.name).filter((x) => !x.startsWith("data:")),
  };
})()
"""


class Tab:
    """A page in the browser; problems: what it has said of errors and warnings so far."""

    def __init__(self, call: Any, session: str):
        self.call, self.session, self.problems = call, session, []
        for part in ("Page", "Runtime", "Log"):
            self.ask(f"{part}.enable")

    def ask(self, method: str, until: str | None = None, **given: Any) -> dict[str, Any]:
        """What a method of the protocol answers, as soon as the event `until` has come, if one is named."""
        return self.call(method, given, self, until)

    def heard(self, event: dict[str, Any]) -> None:
        """Keep what a page should not say."""
        said = event["params"]
        if event["method"] in TROUBLE or (event["method"] == "Runtime.consoleAPICalled"
                                          and said["type"] in ("error", "warning", "assert")):
            self.problems.append(json.dumps(said)[:600])

    def open(self, page: Path, width: int) -> None:
        """Load a page at a width."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", "Page.loadEventFired", url=page.resolve().as_uri())

    def run(self, script: str) -> Any:
        """The value of an expression in JavaScript, waited for."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, for what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG, for people."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


class Pipe:
    """Messages to a browser and back, each ended by a NUL."""

    def __init__(self, write: int, read: int):
        self.write, self.read, self.count, self.rest = write, read, 0, b""
        self.tabs: dict[str, Tab] = {}

    def call(self, method: str, given: dict[str, Any], tab: Tab | None = None, until: str | None = None) -> dict:
        """The answer to a call; events on the way go to their tabs."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": given}
        if tab is not None:
            message["sessionId"] = tab.session
            self.tabs[tab.session] = tab
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self.write, text):]
        answer, waiting = None, until
        while answer is None or waiting:
            found = self.next()
            if "method" in found:
                waiting = None if found["method"] == waiting else waiting
                if found.get("sessionId") in self.tabs:
                    self.tabs[found["sessionId"]].heard(found)
            elif found["id"] == self.count:
                assert "error" not in found, (method, found)
                answer = found["result"]
        return answer

    def next(self) -> dict[str, Any]:
        """The next message; an error where none comes."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            assert select.select([self.read], [], [], max(0, end - time.monotonic()))[0], "the browser says nothing"
            part = os.read(self.read, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)


def path_of_browser() -> str:
    """Path of chromium; without it the test is skipped, or fails where a browser is asked for."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.environ.get("EDM3D_BROWSER") == "required":
        pytest.fail("EDM3D_BROWSER=required, and there is no chromium: apt-get install chromium")
    if found is None:
        pytest.skip("no browser: chromium is not installed (apt-get install chromium)")
    return found


@contextmanager
def opened(folder: Path) -> Iterator[Tab]:
    """A tab of a browser that keeps its things in a folder, and is gone afterwards."""
    chromium = path_of_browser()
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    command = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "bash", chromium, *FLAGS,
               f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        running = subprocess.Popen(command, pass_fds=(to_read, from_write), stdout=log, stderr=log,
                                   start_new_session=True)
    os.close(to_read), os.close(from_write)
    try:
        pipe = Pipe(to_write, from_read)
        target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        yield Tab(pipe.call, session)
        pipe.call("Browser.close", {})
        running.wait(timeout=20)
    finally:
        running.kill()
        running.wait()
        os.close(to_write), os.close(from_read)


def check_page(tab: Tab, page: Path, drive: str = "") -> dict[int, Any]:
    """At every width nothing of a page is missing, fails, is loaded from elsewhere or sticks out, and no picture is
    larger than it is; what it then gives for an expression in JavaScript, by width.
    """
    drawn = {}
    for width in WIDTHS:
        tab.problems.clear()
        tab.open(page, width)
        drawn[width] = tab.run(drive) if drive else None
        one = tab.run(LOOK)
        assert not tab.problems, (width, tab.problems)
        assert one["width"] == width and one["scroll"] <= one["room"], (width, one)
        assert not one["tables"] and not one["wide"], (width, one["tables"], one["wide"])
        assert not one["blown"], (width, "larger than they are", one["blown"])
        assert one["broken"] == 0 and one["links"] == 0 and not one["loaded"], (width, one)
    return drawn

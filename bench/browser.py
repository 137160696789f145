"""A real browser without a window, by the WebDriver protocol (w3.org/TR/webdriver2), for tests and pictures of a page.

Needs the programs chromium and chromedriver, and no package.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVERS = ("chromedriver",)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90.0  # seconds until what does not come is a failure
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def why_absent() -> str:
    """Why there is no browser, or ""."""
    for kind in (DRIVERS, BROWSERS):
        if not any(map(shutil.which, kind)):
            return f"none of {', '.join(kind)} is installed"
    return ""


class Window:
    """One window with a profile of its own."""

    def __init__(self, base: str, downloads: Path, options: tuple[str, ...] = ()) -> None:
        self.base, self.downloads = base, downloads
        browser = next(filter(None, map(shutil.which, BROWSERS)))
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", *options]
        chrome = {
            "binary": browser,
            "args": flags,
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.base = f"{base}/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"].splitlines()[0]) from error

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def close(self) -> None:
        self._ask("DELETE", "")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns; it may wait."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chrome's DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """New entries of the log `browser` or `performance`."""
        return self._ask("POST", "/se/log", {"type": kind})

    def wait(self, script: str, *arguments: Any) -> Any:
        """Wait until the script returns something true."""
        return until(lambda: self.run(script, *arguments), script)

    def click(self, selector: str) -> None:
        self._ask("POST", f"/element/{self._find(selector)}/click")

    def keys(self, text: str, selector: str = "body") -> None:
        self._ask("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def _find(self, selector: str) -> str:
        return str(self._ask("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def drop(self, *files: Path, x: int = 300, y: int = 300) -> None:
        """Drop files as a file manager does."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.devtools("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the mouse: mousePressed, mouseMoved, mouseReleased or mouseWheel."""
        self.devtools("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, **more)

    def size(self, width: int, height: int, ratio: float = 1, dark: bool = False) -> None:
        """Size of the page in pixels of CSS, pixels of the screen for each, and the colours that are preferred."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def picture(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def downloaded(self, name: str) -> bytes:
        """A downloaded file, which is taken away."""
        path = self.downloads / name
        until(path.is_file, f"download of {name}")
        content = path.read_bytes()
        path.unlink()
        return content


def until(found: Callable[[], Any], what: str) -> Any:
    """Wait until `found` gives something true, and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for: {what}")


@contextmanager
def browser(folder: Path) -> Iterator[Callable[..., Window]]:
    """Opens windows; their downloads come into folders of their own in `folder`."""
    port_file = folder / "driver.log"
    with port_file.open("wb") as log:
        driver = subprocess.Popen([shutil.which(DRIVERS[0]) or "", "--port=0"], stdout=log, stderr=log)
    windows: list[Window] = []
    try:
        line = until(
            lambda: [t for t in port_file.read_text().splitlines() if "on port " in t and "success" in t], "driver"
        )
        base = f"http://127.0.0.1:{line[0].rsplit('port ', 1)[1].rstrip('.')}"

        def window(*options: str) -> Window:
            downloads = folder / f"downloads-{len(windows)}"
            downloads.mkdir()
            windows.append(Window(base, downloads, options))
            return windows[-1]

        yield window
    finally:
        for one in windows:
            one.close()
        driver.terminate()
        driver.wait()

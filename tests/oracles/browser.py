"""A headless Chromium, driven by the DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# seconds until something that is waited for counts as failed
PATIENCE = 60.0


def find_browser() -> str | None:
    """Return the program of an installed browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A tab of the browser."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: WebSocketClientConnection) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a command of the DevTools protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), PATIENCE))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            text = await self._socket.read_message()
            assert text is not None, "the browser has gone"
            message = json.loads(text)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.02)

    def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Width of the window in pixels, and the colour scheme of the system."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Return a key as on a keyboard."""
        codes = {" ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}
        event = {"key": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        if key in (" ", "Enter"):
            event["text"] = "\r" if key == "Enter" else key
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        event.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str, *, along: float = 0.5, down: float = 0.5) -> None:
        """Return a click into an element, at a share of its width and height."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            "return [r.left, r.top, r.width, r.height]; })()"
        )
        at = {"x": box[0] + along * box[2], "y": box[1] + down * box[3], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def unnamed_controls(self) -> list[str]:
        """Return the controls and pictures that have no name for those who do not see them."""
        found: list[str] = self.run(
            "[...document.querySelectorAll('button, input, select, img, [role=slider]')].filter(e => "
            "!(e.textContent.trim() || e.getAttribute('aria-label') || e.closest('label') || e.alt || "
            "e.querySelector('img[alt]'))).map(e => e.outerHTML)"
        )
        return found

    def tab_to_slider(self) -> str:
        """Press Tab until a slider has the focus, 60 times at most; the name of what has it then."""
        for _ in range(60):
            self.press("Tab")
            if self.run("document.activeElement.getAttribute('role')") == "slider":
                break
        return str(self.run("document.activeElement.getAttribute('aria-label')"))

    def fits(self, width: int, *, dark: bool) -> bool:
        """Whether the page is no wider than the window, and dark where the system is."""
        ground = self.run("getComputedStyle(document.body).backgroundColor")
        shade = sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(",")))
        return bool(self.run("document.documentElement.scrollWidth") <= width) and (shade < 150 or not dark)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Return a PNG of the whole page, or of the window."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser_page(program: str, *, options: Sequence[str] = ()) -> Iterator[Page]:
    """Yield an empty page in a browser of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        command += [
            "--no-first-run",
            "--disable-gpu",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
        ]
        # Chromium refuses to sandbox root, as in containers
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        log = subprocess.DEVNULL
        process = subprocess.Popen(
            [*command, *options, "about:blank"], stdout=log, stderr=log, start_new_session=True
        )
        loop = asyncio.new_event_loop()
        try:
            socket = loop.run_until_complete(_connect(Path(profile) / "DevToolsActivePort", process))
            page = Page(loop, socket)
            for domain in ("Page", "Runtime", "Network"):
                page.call(f"{domain}.enable")
            yield page
            socket.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            loop.close()


async def _connect(file: Path, process: "subprocess.Popen[bytes]") -> WebSocketClientConnection:
    until = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text().count("\n")):
        assert time.monotonic() < until, "the browser did not start"
        assert process.poll() is None, "the browser ended at once"
        await asyncio.sleep(0.05)
    port = file.read_text().split("\n")[0]
    while True:
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
        tabs = [tab for tab in json.loads(answer.body) if tab["type"] == "page"]
        if tabs:
            return await websocket_connect(tabs[0]["webSocketDebuggerUrl"], max_message_size=2**28)
        await asyncio.sleep(0.05)

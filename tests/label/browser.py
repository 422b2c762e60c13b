"""A headless Chromium, driven over its debugging pipe: no driver and no library needed."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any


class Browser:
    """One page. Use it in a ``with`` block."""

    def __init__(self, profile: Path) -> None:
        (theirs, self.write), (self.read, answers) = os.pipe(), os.pipe()
        command = [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--enable-unsafe-swiftshader",
            "--window-size=1400,900",
        ]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash", *command],  # the pipe's two ends are 3 and 4
            pass_fds=(theirs, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self.count, self.buffer, self.session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                if not select.select([self.read], [], [], 300)[0]:
                    raise TimeoutError(method)
                self.buffer += os.read(self.read, 1 << 20)
            answer, self.buffer = self.buffer.split(b"\0", 1)
            decoded = json.loads(answer)
            if decoded.get("id") == self.count:
                assert "error" not in decoded, decoded
                return dict(decoded["result"])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def wait_for(self, expression: str, seconds: float = 300) -> Any:
        """Ask the page until the JavaScript expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")
            if value:
                return value
            time.sleep(0.5)
        raise TimeoutError(expression)

    def click(self, expression: str, times: int = 1) -> None:
        """Click the middle of the element that the JavaScript expression gives, once it is there."""
        box = f"(e => e && (r => [r.x + r.width / 2, r.y + r.height / 2])(e.getBoundingClientRect()))({expression})"
        x, y = self.wait_for(box)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def scroll(self, x: float, y: float, notches: int) -> None:
        """Turn the wheel at a point of the page."""
        for _ in range(notches):
            self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=100)
            time.sleep(0.2)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

"""A real browser, spoken to over a pipe in the Chrome DevTools Protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from contextlib import contextmanager

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--no-first-run", "--disable-sync", "--mute-audio"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # whatever would leave the machine fails
)
PATIENCE_S = 60


class Page:
    """One tab; `errors` is what its console and its security policy said, `requests` its URLs."""

    def __init__(self, path, profile):
        theirs_in, self.out = os.pipe()
        self.inn, theirs_out = os.pipe()
        # Chromium reads commands from 3 and writes to 4: first out of the way of these numbers.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        self.process = subprocess.Popen(
            [path, *SWITCHES, f"--user-data-dir={profile}"],
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *ends):
            os.close(fd)
        self.number, self.session, self.rest, self.events = 0, None, b"", []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        found = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _read(self):
        while b"\0" not in self.rest:
            assert select.select([self.inn], [], [], PATIENCE_S)[0], "the browser does not answer"
            more = os.read(self.inn, 1 << 20)
            assert more, "the browser is gone"
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def wait(self, method):
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def look(self, url, width=1280, height=900, theme="light"):
        """Load a page and wait for its charts; on a phone's width, as a phone."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.theme(theme)
        self.send("Page.navigate", url=url)
        self.wait("Page.loadEventFired")
        drawn = "Promise.all([...document.querySelectorAll('.chart')].map(one => one.drawn))"
        self.run(f"{drawn}.then(all => all.length)")

    def theme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def run(self, code):
        found = self.send(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, name, code, text=""):
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
        self.send("Input.dispatchKeyEvent", type="keyUp", **key)

    def picture(self, path, whole=True):
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    @property
    def errors(self):
        said = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                said.append(str(params["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled":
                said += [str(params["args"])] if params["type"] in ("error", "warning") else []
            elif event.get("method") == "Log.entryAdded":
                said.append(params["entry"]["text"])
        return said

    @property
    def requests(self):
        """What was asked for, the page itself and what it carries in `data:` left out."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def close(self):
        os.close(self.out)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.inn)


@contextmanager
def opened(profile):
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM)} is on the PATH")
    page = Page(path, profile)
    try:
        yield page
    finally:
        page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("browser")) as page:
        yield page

"""A page in a real browser, without a window: what went wrong on it, and how wide it is."""

import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DARK = "--blink-settings=preferredColorScheme=0"

# Chrome's windows are at least 500 pixels wide, a frame in one is as narrow as a phone.
_HARNESS = """<!DOCTYPE html><html><body><iframe id="page" style="width:{width}px;height:2000px;border:0"></iframe>
<pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  document.getElementById("found").textContent = JSON.stringify({{
    width: frame.contentWindow.innerWidth,
    scroll_width: Math.max(root.scrollWidth, page.body.scrollWidth),
    pictures: page.images.length,
    missing: [...page.images].filter(image => !image.naturalWidth).map(image => image.alt || image.src),
    narrow: [...page.images].filter(image => image.clientWidth < 0.8 * {width}).map(image => image.alt),
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    smallest_text: Math.min(...[...page.querySelectorAll("p, figcaption, td, th, a, pre")].map(
      one => parseFloat(frame.contentWindow.getComputedStyle(one).fontSize))),
  }});
}};
frame.src = "{name}";
</script></body></html>"""


@dataclass(frozen=True)
class Seen:
    """What a browser saw of a page, all that is folded unfolded.

    Attributes:
        width, scroll_width: of the viewport and of the page in it, pixels.
        pictures: how many there are.
        missing: those that could not be drawn.
        narrow: those that do not use the page's width.
        background: computed color.
        smallest_text: pixels.
        console: what was written to the console.
        requests: what the page asked for beside itself.
    """

    width: int
    scroll_width: int
    pictures: int
    missing: list[str]
    narrow: list[str]
    background: str
    smallest_text: float
    console: list[str]
    requests: list[str]


def find_browser() -> str | None:
    """The path of an installed browser of Chrome's family."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def look_at(browser: str, page: Path, profile: Path, width: int = 390, dark: bool = False) -> Seen:
    """Open ``page`` in a viewport ``width`` pixels wide; ``profile`` is an empty folder for the browser."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/harness.html":
                requests.append(self.path)
                super().do_GET()
                return
            content = _HARNESS.format(width=width, name=page.name).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(page.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}/harness.html"
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
            flags += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]
            flags += ["--virtual-time-budget=20000", "--window-size=900,2200", *([_DARK] if dark else [])]
            done = subprocess.run(
                [browser, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=False
            )
        finally:
            server.shutdown()
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, flags=re.S)
    assert found, f"{browser} showed nothing: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = [path for path in requests if path not in (f"/{page.name}", "/favicon.ico")]
    return Seen(**json.loads(unescape(found[1])), console=console, requests=asked)

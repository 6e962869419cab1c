"""The documentation site: built strictly, and with nothing from another host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason='the site needs the extra: pip install "dexcore[docs]"')

ROOT = Path(__file__).parents[2]


class Fetched(HTMLParser):
    """What a browser fetches of a page by itself: scripts, styles, pictures, fonts; no links that one clicks."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses.append(attrs.get("src"))
        if tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(attrs.get("href"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # A warning (a page without a place in the navigation, a link or an anchor to nowhere) is an error.
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_fetches_nothing_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert any(parser.addresses)
        foreign = [address for address in parser.addresses if address and re.match(r"(https?:)?//", address)]
        assert not foreign, f"{page.relative_to(site)}: {foreign}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_equations_are_mathml(site):
    page = (site / "method" / "index.html").read_text(encoding="utf-8")
    assert 'display="block"' in page
    assert "$" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)


def test_the_measurements_pictures_are_those_of_the_benches(site):
    page = (site / "measurements" / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img [^>]*src="\.\./(results/[^"]+)"', page)
    assert {Path(name).name for name in shown} == {path.name for path in (ROOT / "bench/results").glob("*.png")}
    for name in shown:
        assert (site / name).read_bytes() == (ROOT / "bench" / name).read_bytes()

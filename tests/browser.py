"""A page as a real browser shows it: Debian's Chromium, without a screen."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

BROWSERS = ("chromium-headless-shell", "chromium")
REQUIRED = "XPT_REQUIRE_BROWSER"
"""Set by .ci/run: where there is no browser, it is installed, and the tests fail if that cannot be."""

LOOK = """
<script>
addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  const seen = {
    title: document.title,
    headings: [...document.querySelectorAll("h1, h2")].map(e => e.innerText),
    text: document.body.innerText,
    pictures: [...document.images].map(e => [e.naturalWidth, e.naturalHeight]),
    charts: [...document.querySelectorAll("svg")].map(e => [box(e).width, box(e).height]),
    lines: [...document.querySelectorAll("polyline")].map(e => e.getTotalLength()),
    outside: [...document.querySelectorAll("svg *")].filter(e => {
      const inner = box(e), outer = box(e.closest("svg"));
      return inner.left < outer.left - 1 || inner.right > outer.right + 1
          || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
    }).map(e => e.outerHTML),
    requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - innerWidth,
  };
  document.documentElement.setAttribute("data-seen", encodeURIComponent(JSON.stringify(seen)));
});
</script>
"""
"""What the page looks like from inside, left where `--dump-dom` shows it."""


def browser() -> str:
    """Its command. Skips the test where there is none, unless one is required."""
    if os.environ.get(REQUIRED) and not any(map(shutil.which, BROWSERS)):
        subprocess.run([ROOT / "tests" / "install_browser.sh"], check=True)
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    assert not os.environ.get(REQUIRED)
    pytest.skip(f"no browser here: apt-get install {BROWSERS[0]}")


def look_at(page: Path, folder: Path) -> dict:
    """What a window of 1400 x 1000 pixels shows of the page: see `LOOK`."""
    looked = folder / "looked.html"
    looked.write_text(page.read_text() + LOOK)
    command = [browser(), "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--dump-dom"]
    done = subprocess.run([*command, looked.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(unquote(found[1]))

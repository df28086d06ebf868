"""The report in a headless browser: Debian's package `chromium`."""

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from commands.report.__main__ import main
from tests.support.browser import CHROMIUM, QUIET
from tests.support.reports import write_measured_runs, write_results

OPTIONS = [*QUIET.split(), "--enable-logging=stderr"]
WIDTHS = (390, 1280)

# Runs in the page, and tells the page around it what it found.
PROBE = """
<script>
addEventListener("load", () => {
  const all = [...document.body.querySelectorAll("*")];
  const wide = all.filter(element => !element.parentElement.closest(".scroll, pre"));
  const first = document.querySelector("a");
  first.focus();
  const visible = first.getBoundingClientRect().left >= 0;
  first.click();
  parent.postMessage({
    width: innerWidth,
    scrollWidth: document.documentElement.scrollWidth,
    beyond: wide.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    images: [...document.images].map(image => image.naturalWidth),
    tables: [...document.querySelectorAll(".scroll")].map(box => box.clientHeight),
    scrolls: [...document.querySelectorAll(".scroll")].some(box => box.scrollWidth > box.clientWidth),
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:")),
    skip: [visible, document.activeElement.id],
  }, "*");
});
</script>
"""
# Headless windows cannot be as narrow as a phone, but frames can.
AROUND = """<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre>
<script>
addEventListener("message", event => {
  document.getElementById("found").textContent += JSON.stringify(event.data) + "\\n";
});
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")


def look(page: Path, directory: Path) -> tuple[list[dict[str, Any]], str]:
    """Measurements of the page at each width, and the output of the browser."""
    probed, around = directory / "probed.html", directory / "around.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="{probed.name}" width="{width}" height="800"></iframe>' for width in WIDTHS)
    around.write_text(AROUND + frames.replace("<iframe", '<iframe style="border: 0"'), encoding="utf-8")
    options = [*OPTIONS, "--window-size=1400,900", "--virtual-time-budget=5000", "--timeout=30000"]
    profile = f"--user-data-dir={directory / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *options, profile, "--dump-dom", around.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said, f"{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return [json.loads(line) for line in unescape(said[1]).splitlines()], done.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with pictures wider than a phone, and tables with more columns than fit."""
    runs = write_measured_runs(tmp_path_factory.mktemp("report"), pixels=1200)
    write_results(runs)
    main(["--runs", str(runs)])
    return runs / "digits/report.html"


def test_the_page_renders_on_a_phone_and_on_a_screen(page: Path, tmp_path: Path) -> None:
    found, printed = look(page, tmp_path)
    assert "CONSOLE" not in printed, printed
    assert sorted(one["width"] for one in found) == list(WIDTHS)
    for one in found:
        assert len(one["images"]) == 7 and min(one["images"]) > 0
        assert len(one["tables"]) == 4 and min(one["tables"]) > 20
        assert one["scrollWidth"] <= one["width"] and one["beyond"] == []
        assert one["fetched"] == [] and one["skip"] == [True, "main"]
    assert {one["width"]: one["scrolls"] for one in found}[390]  # so a wide table was there to overflow


def test_the_check_detects_broken_pages(page: Path, tmp_path: Path) -> None:
    """A page that is too wide, lacks an image and raises an error is detected."""
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8").replace("overflow-x: auto", "overflow-x: visible")
    text = text.replace('<main id="main"', '<img src="nowhere.png" alt=""><script>missing()</script><main id="main"')
    broken.write_text(text, encoding="utf-8")
    found, printed = look(broken, tmp_path)
    assert "CONSOLE" in printed and "missing is not defined" in printed
    phone = next(one for one in found if one["width"] == 390)
    assert phone["scrollWidth"] > 390 and 0 in phone["images"]

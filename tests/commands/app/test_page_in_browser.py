"""The page in a headless browser: Debian's package `chromium`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra app is not in requirements.lock (docs/app.md)")

from commands.app.explored import Explored
from commands.app.page import build, launch
from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.commands import REPOSITORY
from tests.support.generated import configure, write_runs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of random networks."""
    run = configure(write_runs(tmp_path_factory.mktemp("app") / "runs/digits", image_size=32))
    page = build(Explored.load(None, run, max_images=20))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield launch(page, "127.0.0.1", port, block=False)
    page.close(verbose=False)


def text(tab: Browser, selector: str) -> str:
    return str(tab.run(f"document.querySelector('{selector}')?.innerText ?? ''"))


def change(tab: Browser, script: str, observed: str) -> None:
    """Run a script, and wait until an expression has another value."""
    before = tab.run(observed)
    tab.run(script)
    tab.wait(f"({observed}) !== {before!r}" if isinstance(before, str) else f"({observed}) != null")


def turn_to(tab: Browser, name: str, selector: str) -> None:
    """Open a tab of the page."""
    tab.run(f"[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText === '{name}').click()")
    tab.wait(f"document.querySelector('{selector}')?.offsetParent != null")


def check_shown(tab: Browser, width: int) -> None:
    """The window is not empty, and nothing is wider than it."""
    pixels = np.asarray(Image.open(BytesIO(tab.screenshot())).convert("RGB"))
    assert pixels.shape[1] == width and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")


SOURCE = "document.querySelector('#{} img')?.src ?? ''"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_every_tab_works(width: int, address: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_text("no image")
    with browser(tmp_path / "profile") as tab:
        tab.open(address, width)
        tab.wait("document.querySelector('#psnr')?.innerText.includes('PSNR')")
        first = text(tab, "#psnr")
        tab.upload("input[type=file]", REPOSITORY / "docs/images/three.png")
        tab.wait(f"document.querySelector('#psnr').innerText !== {first!r}")
        whole = text(tab, "#psnr")
        change(tab, "document.querySelector('#kept input').click()", "document.querySelector('#psnr').innerText")
        assert text(tab, "#psnr") != whole
        check_shown(tab, width)

        tab.upload("input[type=file]", damaged)
        said = tab.wait("document.querySelector('.toast-wrap')?.innerText")
        assert "damaged.png cannot be read as an image" in said and "/damaged.png" not in said

        turn_to(tab, "Edit", "#edited")
        tab.wait(SOURCE.format("edited"))
        everywhere = tab.run(SOURCE.format("edited"))
        tab.drag([f"#painted i[data-patch='{patch}']" for patch in (5, 6, 10)])
        chosen = "[...document.querySelectorAll('#painted .chosen')].map(one => one.dataset.patch).join()"
        assert tab.wait(chosen) == "5,6,10"
        tab.wait(f"({SOURCE.format('edited')}) !== {everywhere!r}")
        assert tab.run("document.querySelectorAll('#alone img').length") == 4
        check_shown(tab, width)

        turn_to(tab, "Codes", "#codes")
        tab.hover("#pointed i[data-patch='6']")
        tab.wait("document.querySelector('#codes').innerText.includes('row 1, column 2')")
        assert "of the 320 patches of 20 validation images" in text(tab, "#codes")
        assert tab.wait("document.querySelectorAll('#nearest img').length") > 0
        check_shown(tab, width)

        turn_to(tab, "Generate", "#generate")
        tab.click("#generate")
        tab.wait("document.querySelector('#time').innerText.includes('ms a step')")
        assert tab.wait("document.querySelectorAll('#samples img').length") == 9
        assert tab.run("[...document.querySelectorAll('#samples img')].every(one => one.naturalWidth >= 128)")
        check_shown(tab, width)

        assert tab.errors == []
        own = (address, "data:", "blob:", address.replace("http", "ws"))
        assert [request for request in tab.requests if not request.startswith(own)] == []

"""The documentation builds as a site: no broken link, every documented parameter exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first = (tmp_path / "site/index.html").read_text()
    assert 'href="exchange.html"' in first and 'src="images/' in first
    reference = (tmp_path / "site/api/polytoken.quantizers.vector.html").read_text()
    assert "entropy_temperature" in reference
    assert 'href="api/polytoken.quantizers.vector.html"' in (tmp_path / "site/papers.html").read_text()

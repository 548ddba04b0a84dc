"""Pages in a browser: no sideways scrolling on a phone, few sheets of paper, headings not alone at a foot."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pages
import pytest

from ham_ray.report import report, search_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium shows pages as they look"),
]
PHONE = 390  # pixels


def browse(profile: Path, *flags: str, page: Path) -> str:
    """What Chromium prints."""
    quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += [f"--{flag}" for flag in (*quiet, "disable-extensions", *flags)]
    return subprocess.run([*command, page.as_uri()], check=True, capture_output=True, text=True, timeout=180).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "report": report.render(pages.report_data()),
        "search": search_report.render(pages.search_data()),
    }


def test_nothing_scrolls_sideways_on_a_phone(made: dict[str, str], tmp_path: Path):
    """A frame has the width of a phone, which a window may not have; the widest thing in it is measured."""
    wrapper = tmp_path / "phone.html"
    frames = [
        f'<iframe width="{PHONE}" height="800" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in made.values()
    ]
    wrapper.write_text(
        f"{''.join(frames)}<script>addEventListener('load', () => {{ document.title = [...document.querySelectorAll("
        "'iframe')].map(frame => frame.contentDocument).map(page => page.documentElement.scrollWidth + ' ' + "
        "page.querySelectorAll('table').length).join(' '); })</script>"
    )
    (found,) = re.findall(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", browse(tmp_path, "dump-dom", page=wrapper))
    assert max(map(int, found[::2])) <= PHONE and min(map(int, found[1::2])) >= 3


@pytest.mark.parametrize(("name", "most"), [("report", 10), ("search", 5)])
def test_a_page_of_three_families_is_at_most_ten_sheets(made: dict[str, str], name: str, most: int, tmp_path: Path):
    page, sheets = tmp_path / "page.html", tmp_path / "page.pdf"
    page.write_text(made[name])
    browse(tmp_path, f"print-to-pdf={sheets}", "no-pdf-header-footer", page=page)
    count = len(re.findall(rb"/Type\s*/Page\b", sheets.read_bytes()))
    assert 1 <= count <= most

"""The page as it is looked at: every figure is there and whole, wide screens and phones get one of their own, and nothing runs over the edge of a phone."""

import base64
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from selgrad import run_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONFIG = {
    "dataset": {"name": "digits", "count": 4}, "model": {"name": "mlp", "width": 8}, "metric": ["random", "magnitude"], "ratio": [0, 0.2, 0.9],
    "attack": [{"name": "idlg", "num_steps": 10, "hidden": ["zero", "ignore"]}, "rank_one"], "encryption": {"num_clients": 2}, "gallery": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "out"
    run_sweep(CONFIG, folder, quiet=True)
    return folder


def width_of(svg):
    """Of a figure, in points."""
    return float(ET.fromstring(svg).attrib["width"].removesuffix("pt"))


@pytest.mark.once
def test_every_figure_is_on_the_page_and_has_a_form_for_phones(out):
    page = (out / "report.html").read_text()
    figures = re.findall(r"<picture>(.*?)</picture>", page, re.DOTALL)
    # Levels, protecting ratios, quality by measure, profiles, costs, and a gallery for each attack.
    assert len(figures) == 2 + len(list((out / "figures").glob("*_against_ratio.svg"))) - 1 + 2 + len(list((out / "figures").glob("gallery_*.png")))
    wide, narrow = [], []
    for figure in figures:
        kind, data = re.search(r'<img [^>]*src="data:image/([\w+]+);base64,([^"]+)"', figure).groups()
        raw = base64.b64decode(data)
        if kind == "png":
            picture = Image.open(io.BytesIO(raw))
            assert min(picture.size) > 150 and len(picture.getcolors(10**6) or [1, 2]) > 1
        else:
            wide.append(width_of(raw))
            other = re.search(r'srcset="data:image/svg\+xml;base64,([^"]+)"', figure)
            narrow += [width_of(base64.b64decode(other[1]))] if other else []
    assert min(wide) > 280 and len(narrow) >= len(wide) - 1
    # At 358 px of a phone, letters of 9 pt stay above 8 px.
    assert max(narrow) < 300


@pytest.mark.once
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_as_a_browser_draws_it(out, tmp_path, width):
    """A frame of the page's own width says how wide its content is; pictures are drawn."""
    frame, picture = tmp_path / "frame.html", tmp_path / "page.png"
    # Headless Chromium has no window below 500 px, so a phone is a frame in one.
    frame.write_text(f'<body style="margin:0"><iframe src="{(out / "report.html").as_uri()}" style="border:0;width:{width}px;height:6000px"></iframe>')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={max(width, 500)},6000"]
    subprocess.run([*command, f"--screenshot={picture}", frame.as_uri()], check=True, capture_output=True, timeout=120)
    drawn = Image.open(picture).convert("L")
    assert drawn.size == (max(width, 500), 6000)
    inside = drawn.crop((0, 0, width, 6000))
    # Text and figures cover a share of the page that an empty or broken one does not have, and nothing lies beyond its edge.
    dark = sum(inside.histogram()[:200]) / (width * 6000)
    assert 0.005 < dark < 0.5
    edge = inside.crop((width - 4, 0, width, 6000))
    assert sum(edge.histogram()[:128]) == 0

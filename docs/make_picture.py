"""The picture of the README: the first screen of a `pd_sweep` page, photographed by Chromium.

    python docs/make_picture.py                  # of the recorded run of tests/golden, a minute
    python docs/make_picture.py --page PAGE      # of another page

The recorded run is seeded and on simulated servers; its page is made anew by the code of today.
The PNG carries a stamp of what decides how the first screen looks and reads (`stamp`), and a test
holds it to that: after a change, run this again.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PICTURE = ROOT / "docs" / "report.png"
LOOKS = ("workbench/report/templates/page.css", "workbench/report/templates/page.html.j2")
WORDS, END = "tests/golden/pd_sweep.txt", "\n## "
WIDTH, HEIGHT, SHRUNK_TO = 1280, 990, 1520
STAMP = "Looks"


def stamp() -> str:
    """A hash of the page's template and style, and of the words of its first screen."""
    parts = [(ROOT / name).read_text("utf-8") for name in LOOKS]
    words = ROOT / WORDS
    parts.append(words.read_text("utf-8").partition(END)[0] if words.exists() else "")
    return hashlib.sha256(" ".join("\n".join(parts).split()).encode()).hexdigest()[:16]


def stamp_of(picture: Path) -> str:
    """The stamp that a picture carries; empty if it has none."""
    with Image.open(picture) as image:
        return str(image.info.get(STAMP, ""))


def photograph(page: Path, picture: Path) -> None:
    """Write the first screen of a page as a PNG with the stamp. Raises what Chromium raises."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium was found (example: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
             "--force-device-scale-factor=2", f"--window-size={WIDTH},{HEIGHT}",
             f"--screenshot={shot}", page.resolve().as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(shot) as image:
            size = (SHRUNK_TO, round(image.height * SHRUNK_TO / image.width))
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            # median cut gives rare colours, those of the marks, to their neighbours
            small = small.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        words = PngImagePlugin.PngInfo()
        words.add_text(STAMP, stamp())
        small.save(picture, optimize=True, pnginfo=words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the picture; 0 when it is written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, help="the page of a run (default: the recorded run)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if options.page is None:
            from tests.golden.test_golden import page_of

            options.page = page_of("pd_sweep", Path(folder))
        photograph(options.page, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:,.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

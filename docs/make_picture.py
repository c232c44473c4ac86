"""The picture of the README: the first screen of a `pd_sweep` page, photographed by Chromium.

    python docs/make_picture.py                  # a seeded run on simulated servers, a minute
    python docs/make_picture.py --page PAGE      # of a page that exists

The PNG carries a stamp of the files that decide how a first screen looks (`LOOKS`), and a test
holds it to them: whoever changes one runs this again.
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

from workbench.notebook_run import run_notebook

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "report.png"
LOOKS = ("workbench/report/templates/page.css", "workbench/report/templates/page.html.j2")
"""Files that decide how the first screen of a page looks."""
RUN = {"engine": "simulated", "topology": "1p1d,1p4d", "requests": 4, "rounds": 5, "seed": 1}
WIDTH, HEIGHT, SHRUNK_TO = 1280, 1000, 1520
STAMP = "Looks"


def stamp() -> str:
    """A hash of the files in `LOOKS`, without regard to their indentation."""
    text = "\n".join((ROOT / name).read_text("utf-8") for name in LOOKS)
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


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
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(128)
        words = PngImagePlugin.PngInfo()
        words.add_text(STAMP, stamp())
        small.save(picture, optimize=True, pnginfo=words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the picture; 0 when it is written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, help="the page of a run (default: a simulated run)")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture")
    options = parser.parse_args(arguments)
    if options.page:
        photograph(options.page, options.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run = run_notebook("pd_sweep", RUN | {"output_dir": folder})
            if run.page is None or run.problem:
                sys.exit(run.problem)
            photograph(run.page, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:,.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

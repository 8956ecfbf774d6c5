"""How long the report of many runs takes to be made, and to be drawn in a browser: ``python -m bench.report``.

The run folders are written for it, with numbers like those of real runs. The browser is a Chromium without a window, on
this machine's processor alone; what it takes to open an empty page is printed beside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.report_folders import write_sweep
from yarn_train.report.write import write_report

AXES: dict[str, list[Any]] = {
    "rope.alpha": [0.5, 1, 2, 4, 8],
    "rope.beta": [8, 16, 32, 64, 128],
    "rope.temperature": ["auto", 0.8, 0.9, 1.0],
}


def main() -> None:
    """Write the sweep, report it, open the page, print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="steps of each of the 100 runs")
    parser.add_argument("--keep", type=Path, help="write the sweep here and keep it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sweep = write_sweep(given.keep or Path(scratch) / "sweep", AXES, steps=given.steps, fail=[7, 50], left_out=[99])
        began = time.perf_counter()
        page = write_report(sweep)[0]
        made = time.perf_counter() - began
        print(f"report of 100 runs x {given.steps} steps: made in {made:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
        browser = next(
            (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None
        )
        if browser is None:
            print("no Chromium on PATH: opening it was not measured")
            return
        empty = Path(scratch) / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>")
        nothing, _ = opened(browser, empty, Path(scratch) / "home")
        seconds, dom = opened(browser, page, Path(scratch) / "home")
        drawn = dom.count('class="main-svg"') > 0 and 'data-drawn="' in dom
        print(f"opened in {seconds:.1f} s, an empty page in {nothing:.1f} s; {'drawn' if drawn else 'NOT DRAWN'}")


def opened(browser: str, page: Path, home: Path) -> tuple[float, str]:
    """Seconds from the browser's start until the page stands still, and its elements."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}"]
    command += ["--virtual-time-budget=60000", "--dump-dom", page.resolve().as_uri()]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=os.fspath(page.parent))
    return time.perf_counter() - began, done.stdout


if __name__ == "__main__":
    main()

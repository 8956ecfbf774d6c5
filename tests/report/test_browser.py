"""The pages in a real browser: everything is drawn, nothing is complained of, nothing is asked of a network."""

from __future__ import annotations

import json
import re
import socketserver
from pathlib import Path

import pytest
from browser import find_browser, look
from evaluation_rows import write_evaluation
from report_folders import passkey_rows, write_sweep

from yarn_train.report.terminal import show_comparison
from yarn_train.report.write import write_report

NASTY = "</script><b>&\"'%{x}"


@pytest.fixture
def seen(tmp_path):
    """seen(page): the page in a browser, after the checks that hold for every page."""
    find_browser()

    def open_page(page: Path, *flags: str):
        (tmp_path / "home").mkdir(exist_ok=True)
        result = look(page, tmp_path / "home", *flags)
        assert result.console == []  # nor a request that the page's policy refused
        assert re.search(r'<html[^>]* data-drawn="\d+"', result.dom), "the page's script did not come to its end"
        assert 'class="trouble"' not in result.dom
        wanted = len(re.findall(r'<div class="plot[ "]', result.dom))
        assert len(result.plots) == wanted, "a figure was not drawn"
        return result

    return open_page


def traces(plot: str) -> int:
    return len(re.findall(r'class="trace scatter', plot))


def test_a_chain_and_its_passkeys(run_folder, seen):
    (run_folder / "eval" / "passkey.json").write_text(json.dumps(passkey_rows()))
    write_report(run_folder)
    page = seen(run_folder / "report" / "index.html")
    # perplexity, keys by length, two passkey maps, loss, rate and norm, resources, frequencies of two factors
    assert len(page.plots) == 9
    perplexity, keys, base, _, loss, rates, resources, *_ = page.plots
    assert traces(keys) == 2
    assert traces(perplexity) == 8
    assert base.count(">10/10<") == 10
    assert traces(loss) == 4  # of each stage the smoothed line above the measured one
    assert traces(rates) == 4
    assert traces(resources) == 4  # without MFU: the device's peak is not known
    assert page.dom.count('aria-pressed="true"') == 4


def test_every_evaluation(tmp_path, seen):
    folder = write_evaluation(tmp_path / "model")
    write_report(folder)
    page = seen(folder / "report" / "index.html")
    # perplexity, positions, documents; keys by length and maps of 3 models x 4 variants; benchmarks; dynamic; four
    # temperatures, their fit and gains; ramps
    assert len(page.plots) == 3 + 4 + 12 + 1 + 4 + 9 + 4
    perplexity, positions, documents, keys, *_ = page.plots
    assert traces(perplexity) == 4 + 3  # lines and bands
    assert traces(positions) == 4 + 3
    assert traces(documents) == 3  # of the largest window, without what is untrained
    assert traces(keys) == 3
    maps = [plot for plot in page.plots if 'class="hm"' in plot]
    assert len(maps) == 16
    benchmarks = page.plots[19]
    assert traces(benchmarks) == 2
    assert sum(len(re.findall(r">\d+\.\d+ •<", plot)) for plot in maps) == 2  # the default, of each factor


def test_a_sweep_with_a_failure(tmp_path, seen):
    axes = {"rope.alpha": [1, 2, 4], "rope.beta": [16, 32, 64], "rope.temperature": ["auto", 0.9]}
    sweep = write_sweep(tmp_path / "sweep", axes, steps=30, fail=[7])
    write_report(sweep)
    page = seen(sweep / "report" / "index.html")
    maps = [plot for plot in page.plots if 'class="hm"' in plot]
    assert len(maps) == 2
    cells = [re.findall(r'class="heatmap-label"[^>]*>(?:<text[^>]*>)?([^<]*)', plot) for plot in maps]
    assert sum(bool(re.fullmatch(r"(★ )?5\.\d+", text)) for panel in cells for text in panel) == 17
    assert sum(text == "failed" for panel in cells for text in panel) == 1
    assert sum("★" in text for panel in cells for text in panel) == 1
    parallel, losses = page.plots[5], page.plots[7]
    assert traces(parallel) == 17
    assert traces(losses) == 18
    assert len(re.findall(r"<tr[ >]", page.dom.partition(">Jobs<")[2].partition("</table>")[0])) == 19
    assert "loss is not finite at 3 steps in a row" in page.dom


def test_several_runs_with_names_that_would_break_a_page(run_folder, tmp_path, seen):
    sweep = write_sweep(tmp_path / "sweep", {"rope.temperature": [0.8, 0.9, 1.0]}, steps=30)
    nasty = tmp_path / NASTY.replace("/", "")
    run_folder.rename(nasty)
    rows = json.loads((nasty / "eval" / "perplexity.json").read_text())
    (nasty / "eval" / "perplexity.json").write_text(json.dumps([{**r, "label": r["label"] + NASTY} for r in rows]))
    show_comparison([sweep, nasty], tmp_path / "both")
    page = seen(tmp_path / "both" / "index.html")
    assert traces(page.plots[-2]) == 4
    write_report(nasty)
    own = seen(nasty / "report" / "index.html")
    assert "&lt;/script&gt;" in own.plots[0]  # the label, as it was written


def test_what_a_page_would_ask_of_a_network_is_refused(run_folder, tmp_path):
    find_browser()
    write_report(run_folder)
    page = run_folder / "report" / "index.html"
    with socketserver.TCPServer(("127.0.0.1", 0), None) as server:
        there = f"http://127.0.0.1:{server.server_address[1]}"
        wish = f'<img src="{there}/a.png"><script src="{there}/b.js"></script><script>fetch("{there}/c")</script>'
        page.write_text(page.read_text().replace("<body>", f"<body>{wish}"))
        (tmp_path / "home").mkdir()
        result = look(page, tmp_path / "home")
        server.timeout = 0
        asked: list[object] = []
        server.process_request = lambda *request: asked.append(request)
        server.handle_request()
    assert asked == []
    assert sum("Content Security Policy" in line for line in result.console) >= 3


def test_dark_pages_are_drawn_too(run_folder, seen):
    write_report(run_folder)
    page = seen(run_folder / "report" / "index.html", "--blink-settings=preferredColorScheme=0")
    assert "rgb(74, 168, 224)" in page.plots[0]  # the blue of a stage, lightened


def test_without_decompression_the_page_says_so(run_folder, tmp_path):
    find_browser()
    write_report(run_folder)
    page = run_folder / "report" / "index.html"
    text = page.read_text()
    page.write_text(text.replace('new DecompressionStream("deflate")', 'new NoSuchThing("deflate")'))
    (tmp_path / "home").mkdir()
    result = look(page, tmp_path / "home")
    assert "The figures cannot be drawn here (ReferenceError" in result.dom
    assert re.findall(r'<img[^>]* src="([^"]*)"', result.dom) == ["perplexity.png", "training.png", "frequencies.png"]

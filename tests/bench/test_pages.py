"""Comparison with a result file, and the page written from all of them."""

from __future__ import annotations

import csv

import pytest
from sublimate.cli import app
from typer.testing import CliRunner

from bench.harness import compare, plots, readme, record, report, run

CASE = "fewbit/gelu/3bit/float32/2^14/cpu"


def row(**changed):
    return {
        **dict.fromkeys(record.COLUMNS, ""),
        "timestamp": "2026-01-02T03:04:05+00:00", "commit": "abc", "device": "Some CPU",
        "threads": "2", "python": "3.11", "torch": "2.13", "case": CASE, "family": "fewbit",
        "op": "gelu", "bits": "3", "dtype": "float32", "elements": "16384", "mode": "both",
        "provider": "sublimate-cpu", "allocator": "warm", "samples": "3", "p20_ms": "1",
        "p50_ms": "2", "p80_ms": "3", "saved_bytes": "6144", "ratio_eager": "0.5",
        "bound": "memory",
        "fraction": "0.75", "parity": "pass",
    } | changed  # fmt: skip


def written(path, *rows):
    record.append(path, rows)
    return path


def test_compare_uses_the_newest_row(tmp_path):
    old = written(tmp_path / "a.csv", row(p50_ms="8"), row(p50_ms="4", ratio_eager="0.25"))
    red = row(provider="sublimate-triton", p50_ms="", parity="red")
    found, remark = compare.against([row(), row(mode="fwd"), red], old)
    assert [(r["mode"], r["then_ms"], r["change"], r["change_eager"]) for r in found] == [
        ("both", "4", "0.5", "2")
    ]
    assert remark == ""
    _, remark = compare.against([row(device="Other CPU")], old)
    assert remark.startswith("Some CPU then, Other CPU now: another machine")
    with pytest.raises(ValueError, match=r"a\.csv: expected timed rows of the cases"):
        compare.against([row(case="fewbit/other")], old)


def test_compare_reads_before_it_appends(monkeypatch, tmp_path, capsys):
    """A run that is appended to its own reference is held to what was there before."""
    old = written(tmp_path / "a.csv", row(p50_ms="8"))
    monkeypatch.setattr(run, "execute", lambda *_: [row()])
    arguments = (("fewbit",), "*", "warm", 1, 1, True, (), old, None, False, old)
    assert run.main(*arguments) == 0
    text = capsys.readouterr().out
    assert "now against a.csv" in text and "0.25" in text
    assert len(record.read(old)) == 2


def test_compare_wants_a_file(tmp_path):
    result = CliRunner().invoke(app, ["bench", "--compare", str(tmp_path / "none.csv")])
    assert result.exit_code == 2 and "no such file" in result.output.replace("\n", " ")


def test_page_says_where_we_lose(tmp_path):
    written(
        tmp_path / "a.csv",
        row(),
        row(mode="bwd", ratio_eager="0.9", bar="0.5", bar_met="no"),
        row(case="fewbit/slow/3bit/float32/8/cpu", ratio_eager="1.5", note="0.4 of captum"),
        row(provider="eager", parity="peer", ratio_eager="1"),
    )
    text = report.text(tmp_path.glob("*.csv"))
    assert "## Some CPU, 2 threads" in text and "Measured 2026-01-02 at abc." in text
    assert "| gelu/3bit/float32/2^14 | cpu | both | 2.00 ms | 0.50 eager |" in text
    assert "| backward | 2.00 ms | 0.90 eager | <= 0.5 (missed) |" in text
    assert "**1.50** eager, 0.40 captum" in text
    losses = text.split("Where a peer is faster as a whole:")[1]
    assert losses.strip() == "- `fewbit/slow/3bit/float32/8/cpu`, sublimate-cpu: 1.50x eager"


def test_committed_page_is_that_of_the_committed_files():
    """docs/performance.md holds no number that bench/results does not."""
    page = record.ROOT / "docs" / "performance.md"
    assert page.read_text(encoding="utf-8") == report.text(record.RESULTS.glob("*.csv")), (
        "python -m sublimate bench --report docs/performance.md"
    )


def test_readme_and_its_chart_are_those_of_the_committed_file():
    """README.md holds no measured number that bench/results does not."""
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.replaced(text), "python -m sublimate bench --refresh"
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1
    bars = readme.bars()
    assert {family for family, *_ in bars} == set(readme._COLOURS)
    picture = readme.CHART.read_bytes()
    assert readme.digest(bars).encode() in picture, "python -m sublimate bench --refresh"


def test_readme_sees_a_changed_number(tmp_path):
    rows = record.read(readme.RESULTS)
    newest = {(r["case"], r["provider"], r["mode"], r["allocator"]): r for r in rows if r["p50_ms"]}
    key = ("fewbit/gelu/3bit/float32/2^24/cpu", "sublimate-cpu", "fwd", "warm")
    changed = written(tmp_path / "a.csv", *rows, newest[key] | {"ratio_eager": "1.75"})
    assert "| GELU fp32 | **1.75** |" in readme.block(changed)
    assert readme.bars(changed) == readme.bars()
    both = newest[(*key[:2], "both", "warm")] | {"ratio_eager": "1.75"}
    assert readme.digest(readme.bars(written(tmp_path / "a.csv", both))) != readme.digest(
        readme.bars()
    )


def test_every_family_can_be_drawn(tmp_path):
    """The ids of cases differ in length, and a family may have no eager rows."""
    first = {}
    for found in plots.latest(readme.RESULTS):
        first.setdefault(found["family"], found["case"])
    kept = [r for r in record.read(readme.RESULTS) if r["case"] in first.values()]
    drawn = plots.draw(written(tmp_path / "a.csv", *kept), tmp_path)
    for family in readme._COLOURS:
        assert any(f"-{family}-" in p.name and p.stat().st_size > 5000 for p in drawn), family


def test_committed_results_are_whole():
    for path in record.RESULTS.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == record.COLUMNS
        assert all(len(r) == len(record.COLUMNS) for r in rows), path.name

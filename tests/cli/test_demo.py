"""The demo: a quick run writes a whole report, a failure shows, a missing package is named."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from sublimate import fewbit
from sublimate._report import Figure, MissingExtra, Result, Settings
from sublimate.cli import app, demo
from typer.testing import CliRunner

for _package in ("sklearn", "skimage", "matplotlib", "jinja2"):
    pytest.importorskip(_package, reason="pip install 'sublimate[demo]'")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is small: waiting for other threads would cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One quick run: (result, JSON, HTML)."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = CliRunner().invoke(
        app, ["demo", "--quick", "--json", "--seed", "3", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.output), (out / "report.html").read_text(encoding="utf-8")


def test_quick_numbers(quick):
    report, _ = quick
    modes = {m["mode"]: m for m in report["sections"]["Few-bit activations"]["modes"]}
    assert list(modes) == ["exact", "1 bit", "2 bits", "3 bits", "4 bits"]
    exact = modes["exact"]
    # 4 blocks, 64 images, 16 patches, 256 hidden units, 4 bytes.
    elements = 4 * 64 * 16 * 256
    assert exact["kept_by_activations_bytes"] == 4 * elements
    for bits in (1, 2, 3, 4):
        mode = modes[f"{bits} bit{'s' if bits > 1 else ''}"]
        assert mode["parity"] is True
        assert mode["kept_by_activations_bytes"] == elements * bits // 8
        saved = exact["kept_bytes"] - mode["kept_bytes"]
        assert saved == exact["kept_by_activations_bytes"] - elements * bits // 8
        assert mode["losses"][-1] < mode["losses"][0]
    errors = [m["gradient_error"] for m in modes.values()]
    assert errors[0] == 0 and errors[1] > errors[2] > errors[3] > errors[4] > 0


def test_multicut_numbers(quick):
    report, html = quick
    found = report["sections"]["Dense multicut"]
    assert [m["method"] for m in found["digits"]] == [
        "dense multicut", "k-means", "agglomerative", "agglomerative", "HDBSCAN",
    ]  # fmt: skip
    ours = found["digits"][0]
    assert 4 < ours["clusters"] < 40 and ours["adjusted_rand_index"] > 0.2
    assert 0 <= found["gap"] < 0.2 and found["losses"][-1] < found["losses"][0]
    assert found["picture"]["nodes"] == 2400 and found["picture"]["segments"] > 10
    for point in found["scaling"]:
        assert point["cost"] <= point["peer_cost"] * (1 - 1e-9)  # costs are negative
    assert html.count('href="data:image/png;base64,') >= 5


def test_path_integral_numbers(quick):
    report, _ = quick
    found = report["sections"]["Path-integral gradients"]
    assert [m["method"] for m in found["blocks"]] == [
        "gradient", "SmoothGrad", "integrated gradients", "expected gradients", "chance",
    ]  # fmt: skip
    shares = {m["method"]: m["share"] for m in found["blocks"]}
    assert abs(shares["chance"] - 0.5) < 0.05
    errors = found["convergence"]["errors"]
    assert errors["gausslegendre"][-1] < 0.1 * errors["riemann_left"][-1]
    assert errors["stratified places"][-1] < errors["random places"][-1]
    assert found["prior"]["variation"]["with prior"] < found["prior"]["variation"]["without"]
    assert found["frequencies"]["largest_delta"] < 1e-4
    assert found["photograph"]["score_masked"] <= found["photograph"]["score_before"]


def test_report_has_every_section(quick):
    report, html = quick
    assert report["passed"] and report["seed"] == 3
    for title in report["sections"]:
        assert f"<h2>{title}</h2>" in html
    assert html.count("<figure>") == 15 == html.count("<svg ")
    assert "all results agree" in html
    for mode in ("exact", "1 bit", "2 bits", "3 bits", "4 bits"):
        assert f"<td>{mode}</td>" in html


def test_report_is_self_contained(quick):
    _, html = quick
    fetched = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"|url\((?!#)([^)]*)\)', html)
    assert fetched == []
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="#|url\(#)([^")]*)', html))
    assert references <= set(ids)


class Planted:
    name = "planted"

    def run(self, settings: Settings, progress) -> Result:
        progress(1, 1, "x")
        figure = Figure("a < b", "caption", "<svg ></svg>")
        return Result(
            "Planted <title>", "s", "f", ["mode", "parity"], [["a", "FAIL"]], figures=[figure]
        )


def test_failed_parity_is_an_exit_status_and_shows(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "sections", lambda: [Planted()])
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    html = (tmp_path / "report.html").read_text()
    assert "PARITY FAILED" in html and "Planted &lt;title&gt;" in html
    assert '<td class="fail">FAIL</td>' in html


def test_parity_of_a_layer_sees_a_wrong_codebook(monkeypatch):
    from sublimate.fewbit import demo as section

    torch.manual_seed(0)
    model = section.DigitTransformer()
    fewbit.convert(model, bits=2)
    images, labels = torch.randn(8, 8, 8), torch.arange(8)
    assert all(m.passed for m in section._parity(model, images, labels))
    layer = model.blocks[1].mlp[1]
    before = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: before(x) + 0 * x.sum() + 1e-3)
    failed = [m for m in section._parity(model, images, labels) if not m.passed]
    assert {m.variant for m in failed} == {"blocks.1.mlp.1"}


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"scikit-learn.*pip install 'sublimate\[demo\]'"):
        demo.sections()
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "sublimate[demo]" in result.output

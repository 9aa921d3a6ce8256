"""Pictures: what is drawn, and refusals."""

from __future__ import annotations

import matplotlib
import pytest
import torch
from sublimate import path_integral as pi

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute"])
def test_plot(sign: str) -> None:
    a, image = torch.randn(3, 8, 6), torch.rand(3, 8, 6)
    ax = pi.plot(a, image, sign=sign, title="t")
    drawn = ax.images[-1]
    value = a.sum(0)
    expected = {"all": value, "positive": value.clamp_min(0), "negative": (-value).clamp_min(0),
                "absolute": value.abs()}[sign]  # fmt: skip
    assert torch.equal(torch.as_tensor(drawn.get_array().data), expected)
    assert len(ax.images) == 2 and ax.get_title() == "t"
    if sign == "all":
        assert drawn.norm.vmin == -drawn.norm.vmax
    plt.close("all")


def test_plot_series() -> None:
    a = torch.tensor([1.0, -2.0, 0.5])
    ax = pi.plot_series(a, torch.ones(3), x=torch.tensor([0.0, 0.5, 1.0]), labels=("Hz", "A"))
    assert [bar.get_height() for bar in ax.patches] == a.tolist() and ax.get_xlabel() == "Hz"
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()
    plt.close("all")


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^attributions: expected"):
        pi.plot(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"^image: expected the size"):
        pi.plot(torch.zeros(4, 4), torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"^sign: expected"):
        pi.plot(torch.zeros(4, 4), sign="up")
    with pytest.raises(ValueError, match=r"^series: expected 4"):
        pi.plot_series(torch.zeros(4), torch.zeros(3))

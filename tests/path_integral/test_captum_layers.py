"""What Captum's published tests of layer attributions check beyond ``test_captum.py``.

Tuples, states and notes among a layer's values, tables of words, layers that take several inputs.
"""

from __future__ import annotations

import pytest
import torch
from helpers.path_cases import Layers
from sublimate import path_integral as pi
from torch import Tensor, nn

captum = pytest.importorskip(
    "captum.attr", reason="captum is not installed; pip install captum==0.9.0"
)
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward")


class Words(nn.Module):
    """Token ids through two tables, the second of which lies in a module, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table, self.inner, self.head = nn.Embedding(8, 5), Sum(), nn.Linear(5, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.table(a) + self.inner(b, c)
        return self.head(torch.tanh(h)).sum((1, 2))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 5)

    def forward(self, b: Tensor, c: Tensor | None) -> Tensor:
        found: Tensor = self.table(b) * (1 if c is None else self.table(c))
        return found


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_table_of_words_is_what_comes_behind_it(rows: int, multiply: bool) -> None:
    """Layer attributions are those of a function of the embedded words; also of two tables."""
    model = Words()
    a, b, c = (
        torch.tensor([[2, 5, 0, 1], [3, 1, 1, 0]])[:rows],
        torch.tensor([[0, 2, 4, 1], [2, 3, 5, 7]])[:rows],
        torch.tensor([[3, 5, 6, 7], [2, 3, 0, 1]])[:rows],
    )
    zero = torch.zeros(1, 4, dtype=torch.int64)

    def behind(e: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return model.head(torch.tanh(e + model.inner(b, c))).sum((1, 2))

    def behind_both(e: Tensor, f: Tensor) -> Tensor:
        return model.head(torch.tanh(e + f)).sum((1, 2))

    words, start = model.table(a).detach(), model.table(zero).detach()
    got, delta = pi.LayerIntegratedGradients(
        model, model.table, multiply_by_inputs=multiply
    ).attribute(a, zero, additional_forward_args=(b, c), return_convergence_delta=True)
    want, their = pi.IntegratedGradients(behind, multiply).attribute(
        words, start, additional_forward_args=(b, c), return_convergence_delta=True
    )
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(delta, their, atol=1e-5, rtol=0)
    both = pi.LayerIntegratedGradients(
        model, [model.table, model.inner], multiply_by_inputs=multiply
    ).attribute((a, b, c), (zero, zero, zero))
    inner = model.inner(b, c).detach(), model.inner(zero, zero).detach()
    want = pi.IntegratedGradients(behind_both, multiply).attribute(
        (words, inner[0]), (start.expand_as(words), inner[1].expand_as(inner[0]))
    )
    for g, w in zip(both, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-5)


def test_a_layer_with_two_outputs() -> None:
    """And without the factor: times the difference of the layer's values it is the same."""
    model = Layers(pair=True)
    x = torch.tensor([[0.0, 100.0, 0.0], [3.0, -1.0, 2.0]])
    found, bare = (
        pi.LayerIntegratedGradients(model, model.act, multiply_by_inputs=m).attribute(x, target=0)
        for m in (True, False)
    )
    theirs = captum.LayerIntegratedGradients(model, model.act).attribute(x, target=0)
    h, start = (model.act(model.first(z)) for z in (x, torch.zeros(1, 3)))
    assert len(found) == 2
    for got, factor, want, a, b in zip(found, bare, theirs, h, start, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(factor * (a - b), got, atol=1e-4, rtol=1e-5)


def test_layers_with_several_inputs() -> None:
    """A list of layers, with their inputs asked for: a tensor, and a tuple of three."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.one, self.many = Layers(), Layers()

        def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            total: Tensor = self.one(a) + self.many(b, c, d).tanh()
            return total

    model = Three()
    inputs = tuple(torch.randn(5, 3) for _ in range(4))
    layers = [model.one, model.many]
    method = pi.LayerIntegratedGradients(model, layers)
    got = method.attribute(inputs, target=0, attribute_to_layer_input=True)
    assert isinstance(got, list) and isinstance(got[1], tuple) and len(got[1]) == 3
    plain = pi.IntegratedGradients(model).attribute(inputs, target=0)
    for g, w in zip((got[0], *got[1]), plain, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-5)
    # The first input shared with the second layer: it gets the sum of both.

    def shared(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return model(a, b, c, a)

    three = inputs[:3]
    got = pi.LayerIntegratedGradients(shared, layers).attribute(
        three, target=0, attribute_to_layer_input=True
    )
    plain = pi.IntegratedGradients(shared).attribute(three, target=0)
    for g, w in zip((got[0] + got[1][-1], *got[1][:-1]), plain, strict=True):
        torch.testing.assert_close(g, w, atol=1e-6, rtol=1e-5)


def test_the_layer_next_to_the_output_is_conductance() -> None:
    """Of the last linear layer's output, both are its change, and so is completeness."""
    model, x = Layers(), torch.tensor([[50.0, 50.0, 50.0]])
    for before in (False, True):
        options = {"target": 0, "n_steps": 150, "attribute_to_layer_input": before}
        got = pi.LayerIntegratedGradients(model, model.last).attribute(x, **options)
        want = captum.LayerConductance(model, model.last).attribute(x, **options)
        torch.testing.assert_close(got, want, atol=0.2, rtol=2e-2)


def test_the_state_of_a_recurrent_layer_is_let_alone() -> None:
    """A layer that gives (values, state): the values are attributed to, the state is as it was."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.lstm, self.head = nn.LSTM(7, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.lstm(x)
            found: Tensor = self.head(out[:, -1]).tanh()
            return found

    model, x = Recurrent().eval(), torch.randn(4, 5, 7)
    got, delta = pi.LayerIntegratedGradients(model, model.lstm).attribute(
        x, target=0, return_convergence_delta=True
    )
    assert got.shape == (4, 5, 3) and float(delta.abs().max()) < 1e-5
    out, start = (model.lstm(z)[0].detach() for z in (x, torch.zeros_like(x)))
    want = pi.IntegratedGradients(lambda h: model.head(h[:, -1]).tanh()).attribute(out, start, 0)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_a_layer_that_gives_more_than_tensors() -> None:
    class Noted(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return 2 * x, None

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Noted()

        def forward(self, x: Tensor) -> Tensor:
            value, note = self.layer(x)
            assert note is None
            return 3 * value[:, 0] - 2 * value[:, 1]

    model = Whole()
    got, delta = pi.LayerIntegratedGradients(model, model.layer).attribute(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), return_convergence_delta=True
    )
    torch.testing.assert_close(got, torch.tensor([[6.0, -8.0], [18.0, -16.0]]))
    assert float(delta.abs().max()) < 1e-5


def test_autograds_options_and_a_layer_that_is_not_used() -> None:
    """The first of two layers does not matter once the second's value is given: zeros."""
    model, x = Layers(), torch.tensor([[3.0, 4.0, 0.0]], requires_grad=True)
    for options in ({"materialize_grads": True}, {"allow_unused": True}, None):
        got = pi.LayerIntegratedGradients(model, [model.first, model.relu]).attribute(
            x, target=0, grad_kwargs=options
        )
        assert [tuple(g.shape) for g in got] == [(1, 4), (1, 4)]
        assert not bool(got[0].any()) and bool(got[1].any())
    with pytest.raises(ValueError, match="grad_kwargs"):
        pi.LayerIntegratedGradients(model, model.relu).attribute(
            x, target=0, grad_kwargs={"is_grads_batched": True}
        )

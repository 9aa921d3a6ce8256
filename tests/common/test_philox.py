"""One generator, four implementations: published vectors and bit equality."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import philox_vectors, triton_interpreter
from sublimate import _philox

HERE = Path(__file__).parent

SOURCE = r"""
#include "common/philox.h"
extern "C" void known(const uint32_t* c, const uint32_t* k, uint32_t* out) {
  const sublimate::Philox4 p = sublimate::philox4x32_10(c[0], c[1], c[2], c[3], k[0], k[1]);
  for (int i = 0; i < 4; ++i) out[i] = p.w[i];
}
extern "C" void uniform(uint64_t seed, const int64_t* index, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = sublimate::philox_uniform(
        sublimate::philox_words(seed, uint64_t(index[i]) >> 2).w[index[i] & 3]);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH (install g++)")
    folder = tmp_path_factory.mktemp("philox")
    (folder / "philox.cpp").write_text(SOURCE)
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command += [f"-I{HERE.parents[1] / 'csrc'}", str(folder / "philox.cpp")]
    subprocess.run([*command, "-o", str(folder / "philox.so")], check=True)
    loaded = ctypes.CDLL(str(folder / "philox.so"))
    loaded.uniform.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return loaded


@pytest.mark.parametrize("vector", philox_vectors.KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers_torch(vector):
    counter, key, expected = vector
    words = _philox.philox4x32(*(torch.tensor(c) for c in counter), *key)
    assert [int(w) for w in words] == list(expected)
    words = _philox.philox4x32(*(torch.tensor(c) for c in counter), *map(torch.tensor, key))
    assert [int(w) for w in words] == list(expected)


@pytest.mark.parametrize("vector", philox_vectors.KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers_cpp(library, vector):
    counter, key, expected = vector
    out = (ctypes.c_uint32 * 4)()
    library.known((ctypes.c_uint32 * 4)(*counter), (ctypes.c_uint32 * 2)(*key), out)
    assert list(out) == list(expected)


@pytest.mark.parametrize("seed", philox_vectors.SEEDS)
def test_cpp_matches_torch(library, seed):
    index = philox_vectors.indices()
    out = torch.full((index.numel(),), -1.0)
    library.uniform(seed, index.data_ptr(), out.data_ptr(), index.numel())
    assert torch.equal(out, _philox.uniform(seed, index))


@pytest.mark.lane("triton interpreter")
def test_triton_matches_torch(tmp_path):
    pytest.importorskip("triton", reason="pip install triton")
    cases = HERE / "philox_interpreter_cases.py"
    outcomes = triton_interpreter.run_cases(cases, tmp_path / "report.xml")
    triton_interpreter.check_cases(outcomes, expected=19)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 1021])
def test_count_is_indices(n):
    drawn = _philox.uniform(9, n)
    assert drawn.shape == (n,) and drawn.dtype == torch.float32
    assert torch.equal(drawn, _philox.uniform(9, torch.arange(n)))


@pytest.mark.parametrize("seed", philox_vectors.SEEDS)
def test_seed_tensor_is_seed(seed):
    assert torch.equal(_philox.uniform(torch.tensor(seed), 33), _philox.uniform(seed, 33))


def test_index_keeps_shape():
    index = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(_philox.uniform(1, index), _philox.uniform(1, 24).reshape(2, 3, 4))


def test_distribution():
    # Mean and variance of 2**20 uniforms: six standard errors.
    u = _philox.uniform(12345, 2**20).double()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 6 * (1 / 12) ** 0.5 / 2**10
    assert abs(u.var() - 1 / 12) < 6 * (1 / 180) ** 0.5 / 2**10


@pytest.mark.slow
def test_compiles():
    seed, index = torch.tensor(2**33 + 1), philox_vectors.indices()
    compiled = torch.compile(_philox.uniform, fullgraph=True)
    assert torch.equal(compiled(seed, index), _philox.uniform(seed, index))
    assert torch.equal(compiled(seed, 1021), _philox.uniform(seed, 1021))


@pytest.mark.parametrize(
    ("seed", "index", "error", "message"),
    [
        (-1, 4, ValueError, r"seed: expected a value in \[0, 2\*\*63\), got -1"),
        (2**63, 4, ValueError, "seed: expected a value in"),
        (1.0, 4, TypeError, "seed: expected an int or an int64 tensor, got float"),
        (torch.zeros(2, dtype=torch.int64), 4, ValueError, "seed: expected one int64 value"),
        (torch.zeros(()), 4, ValueError, "seed: expected one int64 value"),
        (0, -1, ValueError, "index: expected a count >= 0, got -1"),
        (0, 2.0, TypeError, "index: expected an int or an int64 tensor, got float"),
        (0, torch.zeros(2), TypeError, "index: expected an int64 tensor, got dtype torch.float32"),
    ],
)
def test_bad_input(seed, index, error, message):
    with pytest.raises(error, match=message):
        _philox.uniform(seed, index)

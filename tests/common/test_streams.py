"""Streams, normal numbers and the keyed permutation: bit equality of C++ and Triton with torch.

The C++ headers are those of the CUDA kernels too.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import philox_vectors, triton_interpreter
from sublimate import _normal, _permutation, _philox

HERE = Path(__file__).parent

SOURCE = r"""
#include "common/normal.h"
#include "common/permutation.h"
#include "common/philox.h"
using namespace sublimate;
extern "C" void words(uint64_t seed, uint32_t s, const int64_t* index, int64_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = philox_words(seed, uint64_t(index[i]) >> 2, s).w[index[i] & 3];
}
extern "C" void normals(const int64_t* word, const float* table, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = normal_of(uint32_t(word[i]), table);
}
extern "C" void permute(uint64_t seed, int64_t m, const int64_t* index, int64_t* there,
                        int64_t* back, int64_t n) {
  const Permutation p = make_permutation(seed, m);
  for (int64_t i = 0; i < n; ++i) {
    there[i] = permuted(p, uint32_t(index[i]));
    back[i] = permuted_back(p, uint32_t(index[i]));
  }
}
"""


@pytest.fixture(scope="module", params=["off", "fast"])
def library(request, tmp_path_factory):
    """The headers without and with contracted multiply-adds."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH (install g++)")
    folder = tmp_path_factory.mktemp("streams")
    (folder / "streams.cpp").write_text(SOURCE)
    command = [compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    command += [f"-ffp-contract={request.param}", f"-I{HERE.parents[1] / 'csrc'}"]
    if request.param == "fast" and "fma" in Path("/proc/cpuinfo").read_text().split():
        command.append("-mfma")
    subprocess.run(
        [*command, str(folder / "streams.cpp"), "-o", str(folder / "streams.so")], check=True
    )
    loaded = ctypes.CDLL(str(folder / "streams.so"))
    address, number = ctypes.c_void_p, ctypes.c_int64
    loaded.words.argtypes = [ctypes.c_uint64, ctypes.c_uint32, address, address, number]
    loaded.normals.argtypes = [address, address, address, number]
    loaded.permute.argtypes = [ctypes.c_uint64, number, address, address, address, number]
    return loaded


@pytest.mark.parametrize("stream", range(6))
def test_cpp_words(library, stream):
    index = philox_vectors.indices()
    for seed in philox_vectors.SEEDS:
        out = torch.full_like(index, -1)
        library.words(seed, stream, index.data_ptr(), out.data_ptr(), index.numel())
        assert torch.equal(out, _philox.words(seed, index, stream=stream))


def test_cpp_normals(library):
    """Every magnitude there is, with either sign."""
    word = torch.arange(2**23) << 9
    word |= torch.arange(2**23) & 1
    out, table = torch.empty(2**23), _normal.table()
    library.normals(word.data_ptr(), table.data_ptr(), out.data_ptr(), word.numel())
    assert torch.equal(out, _normal.from_words(word))


@pytest.mark.parametrize("m", [1, 2, 255, 256, 257, 70_000, 2**31 - 5, 2**31])
def test_cpp_permutation(library, m):
    index = torch.unique((torch.arange(500) * 0x9E3779B1 + 5) % m)
    for seed in (0, 2**40 + 17):
        there, back = torch.full_like(index, -1), torch.full_like(index, -1)
        pointers = index.data_ptr(), there.data_ptr(), back.data_ptr()
        library.permute(seed, m, *pointers, index.numel())
        assert torch.equal(there, _permutation.permute(seed, m, index))
        assert torch.equal(back, _permutation.unpermute(seed, m, index))


@pytest.mark.lane("triton interpreter")
def test_triton(tmp_path):
    pytest.importorskip("triton", reason="pip install triton")
    cases = HERE / "streams_interpreter_cases.py"
    outcomes = triton_interpreter.run_cases(cases, tmp_path / "report.xml")
    triton_interpreter.check_cases(outcomes, expected=21)

"""The same bits again, from threads, forked and spawned processes; memory that runs out."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.kernel_calls import CALLS, KERNELS
from helpers.lanes import counted_calls
from helpers.processes import at_once, environment
from sublimate import fewbit


@pytest.fixture(scope="module")
def due():
    """Every call's result, and that every kernel ran."""
    with pytest.MonkeyPatch.context() as patch, counted_calls(patch) as counts:
        found = {name: kernel() for name, kernel in CALLS.items()}
    assert set(counts) - {"cpu"} == set(KERNELS)
    return found


def differing(found, due):
    return [
        name
        for name in due
        if not all(torch.equal(a, b) for a, b in zip(found[name], due[name], strict=True))
    ]


def everything():
    return {name: kernel() for name, kernel in CALLS.items()}


def test_repeated_runs_give_the_same_bits(due):
    assert differing(everything(), due) == []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        # Torch's own products and sums, around our kernels, may follow the number of threads.
        torchs = ("path", "noise", "masks", "linear")
        exact = {name: v for name, v in due.items() if not name.startswith(torchs)}
        assert differing(everything(), exact) == []
    finally:
        torch.set_num_threads(before)


def test_many_callers_at_once(due):
    results = []
    at_once(lambda i: results.append(everything()), 4)
    assert len(results) == 4
    for found in results:
        assert differing(found, due) == []


# ------------------------------------------------------------------------------ other processes

#: Of each family one call whose kernels use threads, and no product of torch's, which hangs after
#: a fork for the same reason that ours did.
FORKED = ("fewbit", "attention", "polynomial", "clusters", "contraction", "hadamard")

SCRIPT = """
import multiprocessing, sys
import torch
from helpers.kernel_calls import CALLS

def sums(names):
    return repr([[t.double().sum().item() for t in CALLS[n]()] for n in names])

def child(connection, names, threads):
    if threads:
        torch.set_num_threads(threads)
    connection.send_bytes(sums(names).encode())

if __name__ == "__main__":
    method, names = sys.argv[1], sys.argv[2].split(",")
    torch.set_num_threads(2)
    due = sums(names)
    context = multiprocessing.get_context(method)
    # After a fork torch itself is safe with one thread only; spawned processes choose.
    for threads in (2,) if method == "spawn" else (1,):
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there, names, threads))
        process.start()
        assert here.poll(60), "the child hangs"
        found = here.recv_bytes().decode()
        process.join(20)
        assert found == due and process.exitcode == 0, (found, due)
    print("agree")
"""


def run(script, *arguments, timeout=120, **variables):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], env=environment(**variables),
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork (Linux, macOS)")
def test_forked_kernels_do_not_wait_for_threads_of_the_parent():
    """Found here: a kernel that ran on two threads in the parent hung in the child, since libgomp's
    team did not survive the fork. Kernels alone: torch's operations need one thread there."""
    done = run(
        """
        import multiprocessing
        import torch
        from sublimate import fewbit, randomized_linear as rl

        x = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))

        def results():
            return [fewbit.gelu(x, backend="cpu"), rl.hadamard_transform(x, backend="cpu")]

        def child(connection):
            connection.send([bool((a.numpy() == b.numpy()).all()) for a, b in zip(results(), due)])

        torch.set_num_threads(2)
        due = results()
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there,))
        process.start()
        ended = here.poll(30)
        assert ended and here.recv() == [True, True], "the child hangs" if not ended else "differs"
        print("agree")
        """
    )
    assert "agree" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_gives_the_same_bits(method, tmp_path):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("needs os.fork (Linux, macOS)")
    file = tmp_path / "script.py"  # spawn imports the main module again
    file.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(file), method, ",".join(FORKED)], env=environment(),
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.stdout == "agree\n", done.stderr[-3000:]


class _Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        x = torch.full((70_000,), float(i) - 2.5).requires_grad_()
        y = fewbit.gelu(x, bits=3, backend="cpu")
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_data_loader_workers(due):
    alone = [_Rows()[i] for i in range(6)]
    for (y, dx), due_y, due_dx in zip(
        torch.utils.data.DataLoader(_Rows(), batch_size=None, num_workers=2),
        *zip(*alone, strict=True),
        strict=True,
    ):
        assert torch.equal(y, due_y) and torch.equal(dx, due_dx)


# ---------------------------------------------------------------------------------- out of memory

LIMITED = """
    import resource
    import torch
    from sublimate import fewbit, multicut, randomized_linear as rl
    from sublimate import kronecker_attention as ka, path_integral as pi
    torch.set_num_threads(2)
    small = torch.randn(70, 70)
    fewbit.gelu(small, backend="cpu")  # threads and tables are there
    big = torch.randn(40_000_000)      # 160 MB
    nodes = torch.randn(20_000, 3)
    q = torch.randn(1, 1, 400, 64)
    graph = torch.randint(3_000_000, (3_000_000, 2))
    graph = graph[graph[:, 0] != graph[:, 1]]
    costs = torch.ones(len(graph))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
    calls = {
        "fewbit": lambda: fewbit.gelu(big.requires_grad_(), backend="cpu"),
        "linear": lambda: rl.project(big.view(-1, 4000), "gaussian", 9000, 1, backend="cpu"),
        "hadamard": lambda: rl.hadamard_transform(big.view(-1, 40), backend="cpu"),
        "topk": lambda: multicut.inner_product_topk(nodes, 5000, backend="cpu"),
        "graph": lambda: multicut.gaec_graph(graph, costs, backend="cpu"),
        "attention": lambda: ka.kronecker_attention(
            *(5 * [q.expand(400, 64, 400, 64)]), method="polynomial", degree=3, scale=0.001,
            backend="cpu"),
        "path": lambda: pi.integrated_gradients(
            lambda x: x.sin().sum(1), big.detach().view(4, -1), n_steps=2, backend="cpu"),
    }
    for name, call in calls.items():
        try:
            call()
        except (MemoryError, RuntimeError) as error:
            print(name, type(error).__name__, str(error).replace("\\n", " ")[:300])
        else:
            print(name, "ran")
    y = fewbit.gelu(small, backend="cpu")  # and work goes on
    assert torch.allclose(y, torch.nn.functional.gelu(small), atol=1e-5)
    print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's RLIMIT_AS")
def test_memory_that_runs_out_is_an_exception():
    """In a process that may take 60 MB more: an exception that says so, and no crash."""
    done = run(LIMITED)
    assert done.returncode == 0 and done.stdout.endswith("alive\n"), (
        done.stdout + done.stderr[-3000:]
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines()[:-1])
    assert len(told) == 7
    for name, what in told.items():
        assert what.startswith(("MemoryError", "RuntimeError", "NativeError")), (name, what)
        assert "allocate" in what or "out of host memory" in what or "memory" in what.lower(), (
            name, what,
        )  # fmt: skip

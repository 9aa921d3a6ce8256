"""Command line: ``sublimate info | check | bench | demo``, also as ``python -m sublimate``."""

from __future__ import annotations

import typer

from . import bench, check, demo, info

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PyTorch kernels for operations whose intermediate is too big to keep.",
)
app.command("info")(info.info)
app.command("check")(check.check)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)

"""``python -m sublimate``: the command line."""

from .cli import app

app(prog_name="sublimate")

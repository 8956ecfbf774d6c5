"""The training entry: compose the configuration, check it, run it. ``python train.py --help`` lists the options."""

from __future__ import annotations

from yarn_train import app, cli

if __name__ == "__main__":
    cli.run(app.train)

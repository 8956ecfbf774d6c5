"""The training entry: compose the configuration, check it, run it. ``python train.py --help`` lists the options."""

from __future__ import annotations

if __name__ == "__main__":
    # Imported here: the processes that tokenise import this file too, and need neither torch nor Hydra.
    from yarn_train import app, cli

    cli.run(app.train)

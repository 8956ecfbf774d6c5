"""Tokenise and pack training documents once, before any accelerator is rented; see ``yarn_train/prepare.py``.

python data/prepare.py data=pg19 model.path=<tokenizer or model> [shard=i/n] [--verify] [--show 3]
"""

if __name__ == "__main__":  # worker processes import this file again, and need nothing of it
    import sys
    from pathlib import Path

    # A script finds the modules beside it; the package is one folder up and need not be installed.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from yarn_train.prepare import main

    main()

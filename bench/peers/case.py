"""One model and one order of data for every trainer of a comparison, in a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from yarn_train import config as schema
from yarn_train.config import Config
from yarn_train.data.store import prepare_parts
from yarn_train.data.stream import Part, open_stream
from yarn_train.model.load import load_config
from yarn_train.rope import hf as rope_hf

ORIGINAL, FACTOR = 256, 16.0
ZIPF = 1.1  # exponent of the tokens' frequencies, about that of words


@dataclass(frozen=True)
class Case:
    """A comparison's sizes and choices.

    Attributes:
        vocab: rows of the embedding, which is the output head too.
        seq_len: tokens of a segment; one segment is a step.
        checkpointing: whether blocks run again in backward, in every trainer.
        steps: at most so many are taken.
    """

    folder: str
    vocab: int = 4096
    seq_len: int = 4096
    checkpointing: bool = False
    steps: int = 20
    hidden: int = 256
    layers: int = 6
    lr: float = 3e-4
    threads: int = 2
    dtype: str = "bfloat16"

    @property
    def heads(self) -> int:
        """Of 64 each."""
        return self.hidden // 64

    @property
    def model_folder(self) -> Path:
        """The untrained model with its tokenizer, in transformers' format."""
        return Path(self.folder) / "model"

    @property
    def rows_file(self) -> Path:
        """int64 [steps, seq_len] in the order in which the steps read them."""
        return Path(self.folder) / "rows.npy"

    def rows(self) -> torch.Tensor:
        """Those of :attr:`rows_file`."""
        return torch.from_numpy(np.load(self.rows_file))

    def options(self, **sections: dict[str, Any]) -> Config:
        """The same as options of ours; `sections` are added to it."""
        made: dict[str, dict[str, Any]] = {
            "run": {"name": "ours", "dir": self.folder},
            "model": {"path": str(self.model_folder), "dtype": self.dtype},
            "rope": {"method": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL},
            "data": {"source": "pretokenized", "path": f"{self.folder}/tokens", "seq_len": self.seq_len, "workers": 1},
            "train": {"steps": self.steps, "global_batch_size": 1},
            "optim": {"lr": self.lr, "weight_decay": 0.0, "grad_clip": 1.0},
            "schedule": {"name": "constant", "warmup_steps": 0},
            "memory": {"activation": "attention" if self.checkpointing else "none"},
            "checkpoint": {"every": 10**6},
            "eval": {"enabled": False},
        }
        for name, values in sections.items():
            made[name] = {**made.get(name, {}), **values}
        return schema.build(made)

    def parts(self) -> list[Part]:
        """The prepared data."""
        (manifest,) = (Path(self.folder) / "cache").rglob("manifest.json")
        return [Part("tokens", Fraction(1), manifest.parent)]

    def peer_model(self, attention: str = "sdpa") -> Any:
        """The model as transformers itself runs it, in float32, with the same YaRN."""
        options = self.options()
        base = load_config(str(self.model_folder))
        config = rope_hf.scaled_config(base, options.rope)
        config.use_cache = False
        return AutoModelForCausalLM.from_pretrained(
            self.model_folder, config=config, dtype=torch.float32, attn_implementation=attention
        )


def read(file: Path) -> Case:
    """The case that :func:`write` wrote."""
    return Case(**json.loads(file.read_text()))


def write(case: Case) -> Path:
    """Make the case's model and data, and the file that says what it is."""
    _model(case)
    _tokens(case)
    options = case.options()
    parts = prepare_parts(options.data, options.model.path, workers=1, root=Path(case.folder) / "cache")
    stream = open_stream(parts, options.run.seed)
    np.save(case.rows_file, stream.rows(stream.ids(0, case.steps)).numpy())
    file = Path(case.folder) / "case.json"
    file.write_text(json.dumps(asdict(case)))
    return file


def _model(case: Case) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.hidden * 11 // 4,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads,
        max_position_embeddings=ORIGINAL,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(case.model_folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(case.vocab)}, unk_token="w2"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1", unk_token="w2")
    tokenizer.save_pretrained(case.model_folder)


def _tokens(case: Case) -> None:
    """Seeded tokens whose frequencies fall as words' do; what they are does not change what a step costs."""
    weights = 1.0 / np.arange(1, case.vocab + 1) ** ZIPF
    rng = np.random.default_rng(0)
    rows = rng.choice(case.vocab, size=(case.steps, case.seq_len), p=weights / weights.sum())
    folder = Path(case.folder) / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"input_ids": rows.tolist()}), folder / "train.parquet")

"""What a resume may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from yarn_train.config import Config, DataConfig
from yarn_train.errors import CheckpointError
from yarn_train.train.run_folder import freeze_config
from yarn_train.train.same_run import check_options


def test_an_option_younger_than_the_folder_had_its_default(tmp_path: Path):
    freeze_config(tmp_path, Config())
    file = tmp_path / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["data"]["document_mask"]
    file.write_text(yaml.safe_dump(stored))
    check_options(tmp_path, Config(), [])
    with pytest.raises(CheckpointError, match=r"data\.document_mask: was 'none', now 'block'"):
        check_options(tmp_path, replace(Config(), data=DataConfig(document_mask="block")), [])


def test_how_data_is_read_is_free(tmp_path: Path):
    freeze_config(tmp_path, Config())
    check_options(tmp_path, replace(Config(), data=DataConfig(cache="copied", workers=3, prefetch=0)), [])

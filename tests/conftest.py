"""Fixtures for all tests: every family and every attention implementation; one thread, as tiny models want it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import tiny
import torch
from transformers import logging

torch.set_num_threads(1)
logging.set_verbosity_error()


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=("sdpa", "eager"))
def impl(request: pytest.FixtureRequest) -> str:
    return str(request.param)

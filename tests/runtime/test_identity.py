"""Invariants 1, 5 and 7: nothing removed is bit-equal to stock, text is untouched, removal leaves nothing behind."""

from __future__ import annotations

import copy

import pytest
import tiny
from plans import PLANS

import foveate
from foveate.errors import UnsupportedModelError


def test_a_copy_is_refused_while_attached(family: str) -> None:
    model = tiny.model(family, fresh=True)
    with foveate.compress(model, PLANS["stride"]), pytest.raises(UnsupportedModelError, match="remove the handle"):
        copy.deepcopy(model)
    copy.deepcopy(model)

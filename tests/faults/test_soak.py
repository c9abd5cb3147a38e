"""Memory under a long load, for AUXOT_TEST_SOAK_S seconds (75); from ten minutes on the bound is the promised one."""

from __future__ import annotations

import os
import sys

import trio

from tests.faults.soak import run_soak
from tests.faults.town import Plan

LENGTH_S = float(os.environ.get("AUXOT_TEST_SOAK_S", "75"))
SEED = int(os.environ.get("AUXOT_TEST_SEED", "7"))
MAX_GROWTH = 0.10 if LENGTH_S >= 600 else 0.30  # a short run sees the interpreter's own pools still growing
SLACK_S = 120


async def test_memory_does_not_grow_under_a_long_load(tmp_path, llama_server_binary, tiny_model):
    """A router or a worker keeps something of every request, of every hang-up or of every lost worker."""
    plan = Plan(folder=tmp_path, binary=llama_server_binary, model=tiny_model, seed=SEED)
    with trio.fail_after(LENGTH_S + SLACK_S):
        soak = await run_soak(plan, length_s=LENGTH_S)
    sys.stdout.write(soak.figures() + "\n")
    assert soak.wrong() == []
    assert {name: growth for name in soak.names if (growth := soak.growth(name)) > MAX_GROWTH} == {}

"""Random faults against real processes, for AUXOT_TEST_CHAOS_S seconds (180), drawn from AUXOT_TEST_SEED (7)."""

from __future__ import annotations

import os

import pytest
import trio

from tests.faults.chaos import run_chaos
from tests.faults.town import Plan

LENGTH_S = float(os.environ.get("AUXOT_TEST_CHAOS_S", "180"))
SEED = int(os.environ.get("AUXOT_TEST_SEED", "7"))
SLACK_S = 240  # to start, to end the last round, to come to rest


@pytest.mark.parametrize(("n_routers", "share"), [(2, 0.7), (1, 0.3)], ids=["two routers", "embedded"])
async def test_every_request_ends_once_and_right_whatever_breaks(
    tmp_path, llama_server_binary, tiny_model, n_routers, share
):
    """A request is lost, doubled, garbled or hangs when processes die, freeze or restart and links break."""
    plan = Plan(folder=tmp_path, binary=llama_server_binary, model=tiny_model, n_routers=n_routers, seed=SEED)
    with trio.fail_after(LENGTH_S * share + SLACK_S):
        chaos = await run_chaos(plan, length_s=LENGTH_S * share)
    assert chaos.wrong == [], f"AUXOT_TEST_SEED={SEED}"

"""Mixed load for a long time, with hang-ups and worker restarts: does memory grow?

The daemons' memory is sampled all along. What it was when the load had run for a tenth of the time is the measure:
caches are full by then, and pools have their size. The router and the first worker live from beginning to end; the
other workers are restarted.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import attrs
import trio

from tests.faults.chaos import calibrate
from tests.faults.crowd import Crowd, End, Outcome, count_ends
from tests.faults.questions import questions
from tests.faults.storm import WORKER_RESTARTS, Storm
from tests.faults.town import Plan, Town, figures, open_town

N_CLIENTS = 6
WARM_UP = 0.1  # of the whole time
N_SAMPLES = 60
GAP_S = (5.0, 15.0)  # between two restarts
WINDOW = 3  # samples whose median is one measure: memory breathes with the answers that are under way


@attrs.define(kw_only=True)
class Soak:
    """A run; `curve` has the bytes of each daemon in RAM at every sample."""

    curve: list[dict[str, int]]
    outcomes: Sequence[Outcome]
    names: Sequence[str]  # of the daemons that lived all the time

    def growth(self, name: str) -> float:
        """Return how much more memory a daemon has at the end than after the warm-up: 0.1 is 10%."""
        samples = [sample[name] for sample in self.curve]
        begin = round(len(samples) * WARM_UP)
        before, after = samples[begin : begin + WINDOW], samples[-WINDOW:]
        return statistics.median(after) / statistics.median(before) - 1

    def wrong(self) -> list[str]:
        """Return the requests that did not end as they must."""
        return [str(o) for o in self.outcomes if o.end in (End.WRONG, End.HUNG)]

    def figures(self) -> str:
        """Return the run in numbers, as JSON."""
        return figures(
            rss_mib={name: [round(sample[name] / 2**20, 1) for sample in self.curve] for name in self.names},
            growth={name: round(self.growth(name), 3) for name in self.names},
            requests=count_ends(self.outcomes),
            n_requests=len(self.outcomes),
            wrong=self.wrong(),
        )


async def run_soak(plan: Plan, *, length_s: float) -> Soak:
    """Soak a town for that long."""
    async with open_town(plan) as town:
        storm = Storm(town=town, chance=random.Random(plan.seed), faults=WORKER_RESTARTS, gap_s=GAP_S)
        crowd = Crowd(
            town=town,
            storm=storm,
            references=await calibrate(town),
            questions=questions(),
            seed=f"soak {plan.seed}",
        )
        soak = Soak(curve=[], outcomes=crowd.outcomes, names=[town.routers[0].name, town.workers[0].name])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sample, town, soak, length_s / N_SAMPLES)
            await _work(crowd, storm, length_s)
            nursery.cancel_scope.cancel()
        return soak


async def _work(crowd: Crowd, storm: Storm, length_s: float) -> None:
    """Let the crowd work for that long, while workers are restarted."""
    closing = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.work, N_CLIENTS, closing)
        await storm.rage(length_s)
        closing.set()


async def _sample(town: Town, soak: Soak, interval_s: float) -> None:
    """Note the memory of those who live all the time, again and again."""
    while True:
        await trio.sleep(interval_s)
        soak.curve.append(town.resident_bytes(soak.names))

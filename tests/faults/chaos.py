"""A seeded run of random faults against a town of real processes, in rounds of storm and calm.

    calibrate -> (storm with clients -> repair -> calm -> every question once, without a fault) again and again -> end

After each storm nothing may be left: no job, no queue entry, no claim, no llama-server too many, no descriptor; and
everything must be answered as it was before the first storm.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import attrs
import trio

from tests.faults.crowd import Crowd, End, Outcome, count_broken, count_ends, count_errors
from tests.faults.http_client import post
from tests.faults.questions import Answer, Question, questions, read_answer
from tests.faults.storm import ALL_FAULTS, Storm
from tests.faults.town import Plan, Town, figures, logged_ends, open_town, until
from tests.live.processes import API_KEY

ROUND_S = 25.0
N_CLIENTS = 10
SPARE_DESCRIPTORS = 4  # a connection that llama-server or a probe keeps open for a moment
MIN_ANSWERED = 0.5  # of the requests whose clients stayed: with a fault every second
LOG_S = 10.0  # the line of a request comes after its last byte
MAX_SHOWN = 20
CRASHES = ("job.crashed", "request.failed", "connection.failed")  # faults of our own, with a traceback


@attrs.define(kw_only=True)
class Chaos:
    """A run: what was done, and what was found to be wrong."""

    seed: int
    town: Town
    storm: Storm
    references: dict[str, Answer]
    descriptors: dict[str, int]
    outcomes: list[Outcome] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    n_rounds: int = 0

    async def run(self, length_s: float) -> None:
        """Do rounds for that long, at least one."""
        deadline = trio.current_time() + length_s
        while not self.n_rounds or trio.current_time() < deadline:
            storm_s = max(5.0, min(ROUND_S, deadline - trio.current_time()))
            await self._round(storm_s)
            self.n_rounds += 1

    async def _round(self, storm_s: float) -> None:
        crowd = self._crowd(f"{self.seed} {self.n_rounds}")
        closing = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crowd.work, N_CLIENTS, closing)
            await self.storm.rage(storm_s)
            closing.set()
        self.outcomes += crowd.outcomes
        await self.town.calm()
        await self._expect_nothing_left()
        await self._expect_all_is_well()

    def _crowd(self, seed: str) -> Crowd:
        return Crowd(town=self.town, storm=self.storm, references=self.references, questions=questions(), seed=seed)

    async def _expect_nothing_left(self) -> None:
        await until(lambda: not self._left_over(), what=f"the end of {self._left_over()}", within_s=20)

    def _left_over(self) -> dict[str, Any]:
        """Return what is there beyond what was there in the first calm."""
        n_llama = len(self.town.llama_servers())
        surplus = {name: n - self.descriptors[name] for name, n in self.town.descriptors().items()}
        found: dict[str, Any] = {f"fds of {name}": n for name, n in surplus.items() if n > SPARE_DESCRIPTORS}
        return found | ({"llama-servers": n_llama} if n_llama != len(self.town.workers) else {})

    async def _expect_all_is_well(self) -> None:
        """Ask everything once: there is no fault now, so there is no excuse."""
        crowd = self._crowd(f"{self.seed} calm {self.n_rounds}")
        await crowd.ask_each_once()
        self.outcomes += crowd.outcomes
        self.wrong += [f"after the storm: {o}" for o in crowd.outcomes if o.end is not End.ANSWERED]

    async def check(self) -> None:
        """Judge the whole run; what is wrong is in `wrong`."""
        self.wrong += [f"{o.end.value}: {o}" for o in self.outcomes if o.end in (End.WRONG, End.HUNG)]
        with trio.move_on_after(LOG_S):
            while self._unsound_logs():
                await trio.sleep(0.5)
        self.wrong += self._unsound_logs()
        for part in (*self.town.routers, *self.town.workers):
            self.wrong += [f"{part.name} crashed: {line}" for line in part.log() if line["event"] in CRASHES]
        if self._share_answered() < MIN_ANSWERED:
            self.wrong.append(f"only {self._share_answered():.0%} of all requests were answered")

    def _unsound_logs(self) -> list[str]:
        """Return the requests whose end a router has logged twice, or never although there was an answer."""
        ends = logged_ends(self.town.routers)
        n_expected = {o.request_id: {1} if o.end is End.ANSWERED else {0, 1} for o in self.outcomes}
        return [
            f"{ends.get(o.request_id, 0)} ends in the routers' logs: {o}"
            for o in self.outcomes
            if ends.get(o.request_id, 0) not in n_expected[o.request_id]
        ]

    def _share_answered(self) -> float:
        stayed = [o for o in self.outcomes if o.end not in (End.LEFT, End.EXCUSED)]
        return sum(o.end is End.ANSWERED for o in stayed) / max(1, len(stayed))

    def figures(self) -> str:
        """Return the run in numbers, as JSON."""
        return figures(
            seed=self.seed,
            rounds=self.n_rounds,
            faults=self.storm.counts(),
            n_faults=len(self.storm.strikes),
            requests=count_ends(self.outcomes),
            broken=count_broken(self.outcomes),
            n_requests=len(self.outcomes),
            share_answered=round(self._share_answered(), 3),
            errors=count_errors(self.outcomes),
            descriptors_before=self.descriptors,
            descriptors_after=self.town.descriptors(),
            wrong=self.wrong[:MAX_SHOWN],
            n_wrong=len(self.wrong),
        )


async def calibrate(town: Town) -> dict[str, Answer]:
    """Ask every question in calm; return the answers by the questions' names."""
    return {question.name: await _ask_in_calm(town, question) for question in questions()}


async def _ask_in_calm(town: Town, question: Question) -> Answer:
    headers = {"authorization": f"Bearer {API_KEY}"}
    raw = b""
    async with post(town.routers[0].port, question.path, body=question.body, headers=headers) as response:
        while piece := await response.read():
            raw += piece
    answer = read_answer(question, response.status, raw)
    assert answer.failure is None, f"{question.name}: {answer.failure}"
    assert question.text in (None, answer.text), question.name
    return answer


async def run_chaos(plan: Plan, *, length_s: float) -> Chaos:
    """Run chaos for about that long, and return what it found."""
    seed = plan.seed
    async with open_town(plan) as town:
        references = await calibrate(town)
        storm = Storm(town=town, chance=random.Random(seed), faults=ALL_FAULTS)
        chaos = Chaos(
            seed=seed, town=town, storm=storm, references=references, descriptors=await settled_descriptors(town)
        )
        try:
            await chaos.run(length_s)
            await chaos.check()
        finally:
            sys.stdout.write(chaos.figures() + "\n")
    assert not town.llama_servers(), "llama-servers are left"
    return chaos


async def settled_descriptors(town: Town) -> dict[str, int]:
    """Return how many descriptors each daemon needs while nothing happens."""
    await town.calm()
    await trio.sleep(1)  # connections that were just left
    return town.descriptors()

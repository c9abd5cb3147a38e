"""Clients of all kinds, who check every answer that they get and remember how each request ended.

answered    the whole answer, to the letter as it was in calm
refused     an error in place of an answer, in the form of its API
failed      an error after the beginning of an answer, which is exact up to there
left        the client hung up
excused     the connection ended with its router
wrong       none of these: text that nobody wrote, two ends, no end, a cut without a cause
hung        nothing came for longer than a job may take
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
import trio

from tests.faults.http_client import CUT, post
from tests.faults.questions import Answer, CutError, MalformedError, Question, read_answer
from tests.faults.storm import Storm
from tests.faults.town import JOB_TIMEOUT_S, Part, Town
from tests.live.processes import API_KEY

HANG_S = JOB_TIMEOUT_S + 15.0
SLOW_S = 0.02  # that a slow client takes for each read
PAUSE_S = 1.0  # after an error: nobody hammers
TRY_AGAIN = frozenset({429, 502, 503, 504, 529})  # the statuses by which a fault may be told


OUT_OF_TIME = "did not end within"  # no job takes that long: it was lost, and nobody knew
LOST = ("cut:", "an end in the middle", "an error without a cause")  # what is wrong with a lost request begins so


class Manner(enum.Enum):
    """How a client behaves."""

    READER = "reader"
    SLOW = "slow"
    LEAVES = "leaves"


class End(enum.Enum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    LEFT = "left"
    CUT = "cut"  # becomes one of the two that follow
    EXCUSED = "excused"
    WRONG = "wrong"
    HUNG = "hung"


@attrs.frozen(kw_only=True)
class Outcome:
    """One request; times are Trio's."""

    request_id: str
    question: Question
    router: Part
    end: End
    began: float
    ended: float
    words: str = ""  # the error, or what is wrong

    def __str__(self) -> str:
        took_s = self.ended - self.began
        return f"{self.request_id} {self.question.name} at {self.router.name}, {took_s:.1f} s: {self.words}"


@attrs.define(eq=False, kw_only=True)
class Crowd:
    """Some clients at work; `outcomes` is what has become of their requests."""

    town: Town
    storm: Storm
    references: Mapping[str, Answer]
    questions: Sequence[Question]
    seed: str
    outcomes: list[Outcome] = attrs.field(factory=list)
    _n_asked: int = 0

    async def work(self, n_clients: int, closing: trio.Event) -> None:
        """Ask until `closing` is set; returns when the last answer has ended."""
        async with trio.open_nursery() as clients:
            for _ in range(n_clients):
                clients.start_soon(self._ask_again_and_again, closing)

    async def ask_each_once(self) -> None:
        """Ask every question once, some at a time, as readers."""
        limiter = trio.CapacityLimiter(4)

        async def one(question: Question, router: Part) -> None:
            async with limiter:
                await self._ask(question, router, Manner.READER, random.Random(0))

        async with trio.open_nursery() as nursery:
            for n, question in enumerate(self.questions):
                nursery.start_soon(one, question, self.town.routers[n % len(self.town.routers)])

    async def _ask_again_and_again(self, closing: trio.Event) -> None:
        while not closing.is_set():
            chance = random.Random(f"{self.seed} {self._n_asked}")
            manner = chance.choices(list(Manner), weights=(6, 1, 2))[0]
            outcome = await self._ask(chance.choice(self.questions), chance.choice(self.town.routers), manner, chance)
            if outcome.end in (End.REFUSED, End.FAILED, End.EXCUSED):
                await trio.sleep(PAUSE_S)

    async def _ask(self, question: Question, router: Part, manner: Manner, chance: random.Random) -> Outcome:
        self._n_asked += 1
        request_id = f"{self.seed.replace(' ', '-')}-{self._n_asked}"
        began = trio.current_time()
        end, words = End.HUNG, "no end"
        with trio.move_on_after(HANG_S):
            end, words = await self._exchange(question, router, manner=manner, chance=chance, request_id=request_id)
        ended = trio.current_time()
        if end in (End.REFUSED, End.FAILED) and not self._is_explained(words, began, ended):
            end, words = End.WRONG, f"an error without a cause: {words}"
        elif end is End.CUT:
            end = End.EXCUSED if self._is_excused(router, began, ended, has_begun=bool(words)) else End.WRONG
            words = f"cut: {words}"
        outcome = Outcome(
            request_id=request_id, question=question, router=router, end=end, began=began, ended=ended, words=words
        )
        self.outcomes.append(outcome)
        return outcome

    async def _exchange(
        self, question: Question, router: Part, *, manner: Manner, chance: random.Random, request_id: str
    ) -> tuple[End, str]:
        """Ask once; return how it ended, with the error's words."""
        n_reads = chance.randrange(60) if manner is Manner.LEAVES else None
        leaves_after_s = chance.uniform(0, 3) if manner is Manner.LEAVES else float("inf")
        headers = {"x-request-id": request_id, "authorization": f"Bearer {API_KEY}"}
        raw = bytearray()
        try:
            with trio.move_on_after(leaves_after_s):
                async with post(router.port, question.path, body=question.body, headers=headers) as response:
                    while piece := await response.read():
                        raw += piece
                        if n_reads is not None and (n_reads := n_reads - 1) < 0:
                            return End.LEFT, ""
                        await trio.sleep(SLOW_S if manner is Manner.SLOW else 0)
                return self._judge(question, response.status, bytes(raw))
        except CUT as exc:
            return End.CUT, f"{exc!r} after {raw[-100:]!r}" if raw else ""
        return End.LEFT, ""

    def _is_explained(self, words: str, began: float, ended: float) -> bool:
        """Whether an error has a fault for its cause; none is the cause that a job took too long."""
        return OUT_OF_TIME not in words and self.storm.explains(began, ended)

    def _is_excused(self, router: Part, began: float, ended: float, *, has_begun: bool) -> bool:
        """Whether a router's end may cut a client off; one that ends in order may only not let it in."""
        faults = ("kill_router",) if has_begun else ("kill_router", "stop_router")
        return self.storm.had(faults, router, began=began, ended=ended)

    def _judge(self, question: Question, status: int, raw: bytes) -> tuple[End, str]:
        """Say what an answer is that came to its end."""
        try:
            answer = read_answer(question, status, raw)
        except MalformedError as exc:
            return End.WRONG, f"malformed: {exc}"
        except CutError:
            return End.WRONG, f"an end in the middle, after {raw[-100:]!r}"
        reference = self.references.get(question.name, answer)
        if status != 200:
            return (End.REFUSED if status in TRY_AGAIN else End.WRONG), f"{status} {answer.failure}"
        if answer.failure is not None:
            is_right = answer.begins(reference)
            return (End.FAILED, answer.failure) if is_right else (End.WRONG, _difference(answer, reference))
        if answer != reference or (question.text is not None and answer.text != question.text):
            return End.WRONG, _difference(answer, reference)
        return End.ANSWERED, ""


def _difference(answer: Answer, reference: Answer) -> str:
    """Say where an answer leaves the right path."""
    same = next((n for n, pair in enumerate(zip(answer.text, reference.text, strict=False)) if len(set(pair)) > 1), -1)
    there = f"...{answer.text[max(0, same - 40) : same + 40]!r}" if same >= 0 else f"{len(answer.text)} characters"
    left = attrs.evolve(answer, text=there)
    return f"{left} in place of {attrs.evolve(reference, text=f'{len(reference.text)} characters')}"


def count_ends(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many requests ended in each way."""
    counts = Counter(outcome.end.value for outcome in outcomes)
    return {end.value: counts[end.value] for end in End if end is not End.CUT}


def count_broken(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many requests were lost, got words that were not theirs (or theirs twice), or hung."""
    wrong = [outcome for outcome in outcomes if outcome.end is End.WRONG]
    n_lost = sum(outcome.words.startswith(LOST) for outcome in wrong)
    n_hung = sum(outcome.end is End.HUNG for outcome in outcomes)
    return {"lost": n_lost, "doubled_or_garbled": len(wrong) - n_lost, "hung": n_hung}


def count_errors(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how often each error was told."""
    return dict(Counter(o.words for o in outcomes if o.end in (End.REFUSED, End.FAILED)).most_common())

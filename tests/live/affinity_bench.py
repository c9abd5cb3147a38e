"""What prefix affinity saves: prompt tokens that llama-servers read, and the time to the first token.

    AUXOT_TEST_LLAMA_SERVER=... python -m tests.live.affinity_bench [N_TURNS]     20 if it is not said; 3 minutes

The conversations of `test_affinity`, with a model whose prompts take time; with and without affinity, as JSON.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

import attrs
import httpx
import orjson

from auxot.demo.tiny_model import write_tiny_model
from tests.live.test_affinity import N_TURNS, Tally, converse, house_of_workers

FEED_FORWARD = 16_384
N_AT_ONCE = 2  # the four llama-servers share this machine's cores
_DURATION = re.compile(r"(\w+);dur=([\d.]+)")


@attrs.define
class TimedTally(Tally):
    """Prompt tokens of some requests, and for how long they waited and were read, in ms."""

    first_ms: list[float] = attrs.field(factory=list)

    def add(self, response: httpx.Response) -> None:
        """Count one."""
        super().add(response)
        durations = {name: float(dur) for name, dur in _DURATION.findall(response.headers["server-timing"])}
        self.first_ms.append(durations["queue"] + durations["prompt"])

    def as_dict(self) -> dict[str, float]:
        """Return the figures."""
        return {
            "prompt_tokens": self.n_prompt,
            "prompt_tokens_read": self.n_read,
            "first_token_mean_ms": round(statistics.mean(self.first_ms), 1),
            "first_token_p50_ms": round(statistics.median(self.first_ms), 1),
            "first_token_p95_ms": round(statistics.quantiles(self.first_ms, n=20)[18], 1),
        }


def main() -> None:
    """Print the figures."""
    n_turns = int(sys.argv[1]) if len(sys.argv) > 1 else N_TURNS
    binary = Path(os.environ["AUXOT_TEST_LLAMA_SERVER"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "slow.gguf"
        write_tiny_model(model, feed_forward=FEED_FORWARD)
        report = {}
        for affinity in ("false", "true"):
            tally = TimedTally()
            with house_of_workers(folder / affinity, binary, model, AUXOT_AFFINITY=affinity) as house:
                converse(house, tally, n_turns=n_turns, n_at_once=N_AT_ONCE)
            report["with" if affinity == "true" else "without"] = tally.as_dict()
    sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")


if __name__ == "__main__":
    main()

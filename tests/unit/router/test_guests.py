"""What letters of other routers do to a job of ours, in orders that no two processes can be made to keep."""

from __future__ import annotations

import attrs
import trio

from auxot.core.jobs import ChatMessage, Failed, Job, JobEvent, JobRecord, TextDelta
from auxot.core.protocol import encode
from auxot.router.draft import Draft
from auxot.router.guests import Correspondence
from auxot.router.letters import Happened, Letter, Started
from auxot.router.relay import OpenJob, Relay

JOB = Job(job_id="j", messages=(ChatMessage(role="user", content="Hi"),))


@attrs.define
class Client:
    """The client of a stream: what it has been told."""

    events: list[JobEvent] = attrs.field(factory=list)

    def feed(self, event: JobEvent) -> None:
        self.events.append(event)

    def flush(self) -> None:
        """Nothing waits."""

    def restart(self) -> bool:
        return not self.events

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


async def test_what_begins_again_elsewhere_does_not_end_what_is_being_continued() -> None:
    """A router dies, another claims its entry and begins anew: its words end the stream that is continued already."""
    client, relay, resumed, posted = Client(), Relay(), list[OpenJob](), list[tuple[str, Letter]]()

    @attrs.define
    class Post:
        def post(self, router_id: str, letter: Letter) -> bool:
            posted.append((router_id, letter))
            return True

    correspondence = Correspondence(
        relay=relay, max_attempts=3, withdraw=lambda _: None, resume=resumed.append, may_stay=lambda: False
    )
    correspondence.mailbox = Post()  # type: ignore[assignment]
    open_job = OpenJob(
        record=JobRecord(job_id="j", accepted_at=0.0), answer=client, frame=encode(JOB), draft=Draft(), is_queued=True
    )
    with relay.open(open_job):
        correspondence.on_letter("dead", Started(job_id="j", attempt=1, worker_id="w"))
        correspondence.on_letter("dead", Happened(job_id="j", attempt=1, events=(TextDelta("one "),)))
        correspondence.on_letter("other", Started(job_id="j", attempt=2, worker_id="v"))
        assert resumed == [open_job]
        open_job.is_queued = False  # as the pool's resume has it
        await trio.lowlevel.checkpoint()
        correspondence.on_letter("other", Happened(job_id="j", attempt=2, events=(TextDelta("one "),)))
        assert not open_job.ended
        assert not [event for event in client.events if isinstance(event, Failed)]
        assert client.text == "one "
        assert {router_id for router_id, _ in posted} == {"other"}  # told to stop

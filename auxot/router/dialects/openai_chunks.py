"""What the streams of OpenAI's chat completions and completions have in common: the frame around each chunk.

data: {"id":...,"object":...,"created":...,"model":...   head, prepared once
      ,"choices":[...]                                   the chunk's own
      ,"usage":null}                                     end: only if the client wants usage
"""

from __future__ import annotations

from auxot.core import sse
from auxot.core.jobs import Failed, PromptProgress, Usage
from auxot.router.dialects.base import json_bytes
from auxot.router.dialects.openai_objects import OpenAiRequest, error_object, progress_object, refusal, usage_object

_DONE = sse.encode_event(b"[DONE]")


class ChunkFrame:
    """The parts of one answer's chunks that do not change from chunk to chunk."""

    def __init__(self, request: OpenAiRequest, object_name: str) -> None:
        head = {
            "id": request.answer_id,
            "object": object_name,
            "created": request.created,
            "model": request.model,
        }
        self._include_usage = request.include_usage
        self.head = b"data: " + json_bytes(head)[:-1]
        self.end = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"

    def chunk(self, choice: bytes) -> bytes:
        """Return the chunk of one choice, given as JSON."""
        return b'%b,"choices":[%b]%b' % (self.head, choice, self.end)

    def progress(self, progress: PromptProgress) -> bytes:
        """Return a chunk that says how far the prompt is; it is no part of the answer, so it has no choice."""
        return b'%b,"choices":[],"prompt_progress":%b%b' % (self.head, json_bytes(progress_object(progress)), self.end)

    def finish(self, usage: Usage) -> bytes:
        """Return the end of a stream: token counts, if the client wants them, and [DONE]."""
        if not self._include_usage:
            return _DONE
        return b'%b,"choices":[],"usage":%b}\n\n%b' % (self.head, json_bytes(usage_object(usage)), _DONE)

    @staticmethod
    def failure(failed: Failed) -> bytes:
        """Return the end of a stream that failed."""
        return sse.encode_event(json_bytes({"error": error_object(refusal(failed))})) + _DONE

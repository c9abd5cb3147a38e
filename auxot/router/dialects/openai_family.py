"""What all of OpenAI's APIs have in common: their errors and their lists of models."""

from __future__ import annotations

from collections.abc import Sequence

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Failed
from auxot.router.dialects import openai_objects
from auxot.router.dialects.base import ModelCard


class OpenAiFamily:
    """The part of `Dialect` that is the same in chat, completions and responses."""

    def refusal(self, failed: Failed) -> RefusedError:
        """Return a job's failure as the error of this dialect."""
        return openai_objects.refusal(failed)

    def error_body(self, error: RefusedError, *, request_id: str) -> bytes:  # noqa: ARG002 -- it stands in a header
        """Return the JSON body of an error."""
        return openai_objects.error_body(error)

    def status(self, code: ErrorCode) -> int:
        """Return the HTTP status of an error."""
        return code.status

    def models(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON body of the list of models."""
        return openai_objects.models_body(cards)

    def model(self, card: ModelCard) -> bytes:
        """Return the JSON body of one model."""
        return openai_objects.model_body(card)

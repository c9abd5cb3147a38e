"""Images that a request names by their address on the web: fetched here, and put into the job as data URLs.

llama-server would fetch them itself, from inside the network that its GPU host stands in, for whoever has a key. The
router does it in its place, after the key and the place in line and before the queue: workers get no addresses.

Bounds: images of one request together no larger than a body may be, MAX_IMAGE_BYTES each, TOTAL_TIMEOUT_S for all of
them; MAX_FETCHES at once in the whole router. What is fetched counts as bytes that wait (`admission`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Job
from auxot.router.dialects.fields import WebImage
from auxot.router.fetch import Fetched, FetchError, fetch

MAX_IMAGE_BYTES = 20 * 1024 * 1024
MAX_IMAGES = 100  # of one request; Anthropic's bound
TOTAL_TIMEOUT_S = 20.0  # an image that takes longer is taken for one that never comes
MAX_FETCHES = 16
MAX_FETCHES_OF_ONE = 4
_MEDIA = "image/"

Grow = Callable[[int], None]
Holder = dict[str, Any]


@attrs.frozen(kw_only=True)
class Images:
    """Fetches images for the requests of one router.

    Attributes:
        allows_private: whether they may come from addresses that are not on the public internet.
        max_bytes: of all images of a request together.
        limit_s: seconds for all of them.
    """

    allows_private: bool
    max_bytes: int
    limit_s: float = TOTAL_TIMEOUT_S
    _fetching: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_FETCHES))

    async def put_in(self, job: Job, *, grow: Grow) -> None:
        """Replace each address on the web in a job by the image that stands there, in place. Cancel-safe.

        Args:
            job: one that nobody else has yet.
            grow: told how many bytes each image adds to the job; may refuse them.

        Raises:
            RefusedError: an image cannot be had; `param` names the field.
        """
        holders = list(_holders(job))
        if not holders:
            return
        if len(holders) > MAX_IMAGES:
            raise _refused(holders[MAX_IMAGES]["url"], f"is one of more than {MAX_IMAGES} images to fetch")
        with trio.move_on_after(self.limit_s) as limit:
            await self._put_in_all(holders, _Budget(self.max_bytes, grow))
        if limit.cancelled_caught:
            late = next(holder["url"] for holder in holders if isinstance(holder["url"], WebImage))
            raise _refused(late, f"was not fetched within {self.limit_s:g} s")

    async def _put_in_all(self, holders: list[Holder], budget: _Budget) -> None:
        """Fetch some at once; the first that cannot be had ends the others."""
        refusals: list[RefusedError] = []
        at_once = trio.CapacityLimiter(MAX_FETCHES_OF_ONE)

        async def put_in_one(holder: Holder) -> None:
            try:
                async with at_once, self._fetching:
                    holder["url"] = await self._data_url(holder["url"], budget)
            except RefusedError as exc:
                refusals.append(exc)
                fetching.cancel_scope.cancel()

        async with trio.open_nursery() as fetching:
            for holder in holders:
                fetching.start_soon(put_in_one, holder)
        if refusals:
            raise refusals[0]

    async def _data_url(self, image: WebImage, budget: _Budget) -> str:
        max_bytes = min(budget.n_bytes_left, MAX_IMAGE_BYTES)
        try:
            fetched = await fetch(image, media=_MEDIA, max_bytes=max_bytes, allows_private=self.allows_private)
            budget.spend(len(fetched.body))
        except FetchError as exc:
            raise _refused(image, str(exc)) from exc
        return await trio.to_thread.run_sync(_as_data_url, fetched)


@attrs.define
class _Budget:
    """How many bytes the images of one request may still have."""

    n_bytes_left: int
    grow: Grow

    def spend(self, n_bytes: int) -> None:
        """Count an image; FetchError if others that came meanwhile left no room for it."""
        if n_bytes > self.n_bytes_left:
            raise FetchError("is too large, together with the other images")
        self.n_bytes_left -= n_bytes
        self.grow(n_bytes * 4 // 3)  # in base64


def has_web_images(job: Job) -> bool:
    """Whether a job names images by address."""
    return next(_holders(job), None) is not None


def _holders(job: Job) -> Iterator[Holder]:
    """Yield what holds an address on the web: `{"url": ...}`, made by a dialect for this job alone."""
    for message in job.messages:
        for part in message.content if isinstance(message.content, list) else ():
            holder = part.get("image_url")
            if holder is not None and isinstance(holder["url"], WebImage):
                yield holder


def _as_data_url(fetched: Fetched) -> str:
    return f"data:{fetched.content_type};base64,{base64.b64encode(fetched.body).decode()}"


def _refused(image: WebImage, reason: str) -> RefusedError:
    return RefusedError(ErrorCode.INVALID_REQUEST, f"{image.field}: {reason}", param=image.field)

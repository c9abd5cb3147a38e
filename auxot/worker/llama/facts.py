"""What llama-server says of itself and of its model, read from `/props`, `/v1/models` and some probes: pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from auxot.core.forwarded import AUDIO, PROBES
from auxot.core.messages import WORKER_FEATURES, Capabilities, Policy

BACKEND = "llama.cpp"
VISION = "vision"
_DEFAULT_CTX_TOKENS = 4096  # llama.cpp's own, for a server that does not say
_QUANTISATION = re.compile(r"[-_.](?:I?Q[1-8](?:_[A-Z0-9]+)*|B?F16|F32|MXFP4(?:_MOE)?|TQ[12]_0)$", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class LlamaFacts:
    """A llama-server that is ready.

    Attributes:
        model: the model's name, from its file name without quantisation.
        slot_ctx_tokens: context of one slot.
        slots: how many jobs it runs at once.
        parameters: "30B", "620M"; None when it does not say.
        has_vision: whether images are understood.
        abilities: features that not every llama-server has: those of `PROBES`, and AUDIO.
        build: llama.cpp's build, for the log.
    """

    model: str
    slot_ctx_tokens: int
    slots: int
    parameters: str | None = None
    has_vision: bool = False
    abilities: tuple[str, ...] = ()
    build: str = ""

    def capabilities(self, policy: Policy) -> Capabilities:
        """Return what the worker announces: what runs here, and what the policy says the model can do.

        But for images, which take a projector: that llama-server has one it says itself.
        """
        known = tuple(word for word in policy.capabilities if word != VISION or self.has_vision)
        own = [VISION] * self.has_vision + [word for word in self.abilities if word not in WORKER_FEATURES]
        extra = [word for word in own if word not in known]
        return Capabilities(
            backend=BACKEND,
            model=self.model,
            ctx_size=self.slot_ctx_tokens,
            parameters=self.parameters,
            total_slots=self.slots,
            model_capabilities=(*known, *extra),
            features=self._features(),
        )

    def _features(self) -> tuple[str, ...]:
        """Return what the worker can do with this llama-server, beyond the original protocol."""
        always = tuple(word for word in WORKER_FEATURES if word not in PROBES or word in self.abilities)
        return (*always, *(word for word in self.abilities if word not in always))


def read_facts(props: Mapping[str, Any], models: Mapping[str, Any], *, abilities: Collection[str] = ()) -> LlamaFacts:
    """Read the answers of GET /props and GET /v1/models; a field that is missing gets a cautious value.

    Args:
        props: the one.
        models: the other.
        abilities: the words of `PROBES` that it has.
    """
    modalities = _object(props.get("modalities"))
    entry = _first(models.get("data"))
    settings = _object(props.get("default_generation_settings"))
    return LlamaFacts(
        model=model_name(str(entry.get("id") or props.get("model_path") or "unknown")),
        slot_ctx_tokens=_count(settings.get("n_ctx")) or _DEFAULT_CTX_TOKENS,
        slots=_count(props.get("total_slots")) or 1,
        parameters=_parameters(_count(_object(entry.get("meta")).get("n_params"))),
        has_vision=modalities.get("vision") is True,
        abilities=(
            *(word for word in PROBES if word in abilities),
            *([AUDIO] if modalities.get("audio") is True else []),
        ),
        build=str(props.get("build_info") or ""),
    )


def model_name(path: str) -> str:
    """Return a model's name: its file's base name without `.gguf` and without the quantisation at its end."""
    name = re.split(r"[/\\]", path)[-1]
    name = re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    return _QUANTISATION.sub("", name).rstrip("-_") or name


def _parameters(n_params: int) -> str | None:
    if n_params >= 10**9:
        return f"{n_params // 10**9}B"
    return f"{n_params // 10**6}M" if n_params > 0 else None


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(value: Any) -> Mapping[str, Any]:
    return _object(value[0]) if isinstance(value, list) and value else {}

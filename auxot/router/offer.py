"""What the router offers to its clients and asks of its workers, from the model that the operator names. Pure.

A name that the registry does not know is no error: each worker may bring its own file for it. It is told with the
nearest names, because mostly it is misspelt, and a worker without a file refuses it.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot.core.errors import ConfigError
from auxot.core.messages import Policy
from auxot.core.models.entries import Registry
from auxot.core.models.lookup import Choice, resolve, shown_name, unknown_model
from auxot.core.models.rows import CHAT, IMAGE_GENERATION

_CLI = "cli"


@attrs.frozen(kw_only=True)
class Offer:
    """What is served: the name that clients see, what workers are told, and what the operator should know."""

    name: str
    policy: Policy
    warnings: tuple[str, ...] = ()


def gpu_offer(registry: Registry, *, model: str, quantization: str, ctx_tokens: int, slots: int) -> Offer:
    """Return the offer of a router with GPU workers.

    Args:
        registry: the models.
        model: as configured.
        quantization: as configured; "": chosen here.
        ctx_tokens: of one slot; a model that was made for less gets less.
        slots: of a worker.

    Raises:
        ConfigError: no worker can serve this; says why and what there is.
    """
    policy = Policy(
        model_name=model,
        quantization=quantization,
        context_size=ctx_tokens,
        max_parallelism=slots,
        capabilities=(CHAT,),
    )
    choice = resolve(registry, model, quantization)
    if isinstance(choice, Choice):
        return _known(choice, policy)
    warnings = () if isinstance(choice, Path) else (f"{unknown_model(registry, model)}: workers must bring a file",)
    return Offer(name=shown_name(model), policy=policy, warnings=warnings)


def cli_offer(*, model: str, cli_type: str, tools: tuple[str, ...], ctx_tokens: int, slots: int) -> Offer:
    """Return the offer of a router whose workers run coding assistants."""
    policy = Policy(
        worker_type=_CLI,
        cli_type=cli_type,
        builtin_tools=tools,
        model_name=model,
        quantization="",
        context_size=ctx_tokens,
        max_parallelism=slots,
        capabilities=(CHAT,),
    )
    return Offer(name=model, policy=policy)


def _known(choice: Choice, policy: Policy) -> Offer:
    model = choice.model
    if IMAGE_GENERATION in model.capabilities:
        raise ConfigError(f"AUXOT_MODEL: {model.name} makes images, which this version's workers cannot")
    on_hub = policy.model_name.startswith("hf:")  # the worker needs the reference: it has no such name
    warnings: tuple[str, ...] = ()
    ctx_tokens = policy.context_size
    if 0 < model.context < ctx_tokens:
        warnings = (f"AUXOT_CTX_SIZE: {model.name} was made for {model.context} tokens: slots have these",)
        ctx_tokens = model.context
    told = attrs.evolve(
        policy,
        model_name=policy.model_name if on_hub else model.name,
        quantization=choice.variant.quantization,
        context_size=ctx_tokens,
        capabilities=model.capabilities,
    )
    return Offer(name=model.name, policy=told, warnings=warnings)

"""The models that the router offers: their names, aliases and what the connected workers say of them. Pure.

    no aliases configured    any name is served, whatever a client is set up to ask for; the lists show the model
    AUXOT_MODEL_ALIASES      only the model's own name and its aliases are served, other names are refused

An alias is a name (`gpt-4o`) or a pattern (`claude-*`). Lists show names, not patterns; whatever is served can be
retrieved by its name when aliases are configured.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.messages import Capabilities
from auxot.router.dialects.base import ModelCard

_PATTERN_CHARS = frozenset("*?[")
_MAX_SHOWN_CHARS = 100  # of a name that nobody knows
_ALWAYS = ("chat",)  # what every worker does


@attrs.define(kw_only=True)
class Catalog:
    """What the router serves. Changing state: all of it, by `become`, when the router's policy changes.

    Attributes:
        name: the model's own name.
        created: Unix seconds; fixed.
        context_size: tokens of one slot while no worker says it.
        aliases: other names and patterns for it; empty: any name is served.
    """

    name: str
    created: int
    context_size: int
    aliases: tuple[str, ...] = ()

    def become(self, other: Catalog) -> None:
        """Offer what another catalog offers, from the next request on."""
        self.name, self.context_size, self.aliases = other.name, other.context_size, other.aliases

    def serves(self, name: str) -> bool:
        """Whether a request for that model is taken; one that names none is."""
        return not (self.aliases and name) or self._is_known(name)

    def check(self, name: str) -> None:
        """Raise RefusedError if a request for that model is not taken."""
        if not self.serves(name):
            raise _no_model(name)

    def cards(self, announced: Iterable[Capabilities]) -> tuple[ModelCard, ...]:
        """Return the list of models: the model itself, then its aliases that are names.

        Args:
            announced: what the connected workers say of themselves.
        """
        card = self._own_card(tuple(announced))
        names = dict.fromkeys(alias for alias in self.aliases if not _is_pattern(alias) and alias != self.name)
        return (card, *(attrs.evolve(card, id=name) for name in names))

    def card(self, name: str, announced: Iterable[Capabilities]) -> ModelCard:
        """Return one model, by its own name or one that an alias covers.

        Raises:
            RefusedError: there is none.
        """
        if not self._is_known(name):
            raise _no_model(name)
        return attrs.evolve(self._own_card(tuple(announced)), id=name)

    def _is_known(self, name: str) -> bool:
        return name == self.name or any(fnmatchcase(name, alias) for alias in self.aliases)

    def _own_card(self, announced: tuple[Capabilities, ...]) -> ModelCard:
        """Say what holds whichever worker gets the request: the smallest context, the capabilities of all."""
        contexts = [one.ctx_size for one in announced if one.ctx_size > 0]
        common = dict.fromkeys(_ALWAYS)
        if announced:
            first, *others = announced
            common |= dict.fromkeys(
                word for word in first.model_capabilities if all(word in one.model_capabilities for one in others)
            )
        return ModelCard(
            id=self.name,
            created=self.created,
            context_size=min(contexts, default=self.context_size),
            capabilities=tuple(common),
        )


def _is_pattern(alias: str) -> bool:
    return not _PATTERN_CHARS.isdisjoint(alias)


def _no_model(name: str) -> RefusedError:
    shown = name if len(name) <= _MAX_SHOWN_CHARS else f"{name[:_MAX_SHOWN_CHARS]}..."
    message = f'The model "{shown}" does not exist or you do not have access to it.'
    return RefusedError(ErrorCode.MODEL_NOT_FOUND, message, param="model")

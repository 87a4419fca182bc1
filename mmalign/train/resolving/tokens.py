"""What a language model sees otherwise than the data has it: the section `tokens`."""

from collections.abc import Mapping

from mmalign.errors import ConfigError, explain
from mmalign.methods.row import Default, Method
from mmalign.train.resolving.row_defaults import Settings, fill
from mmalign.train.token_sections import CorruptionConfig, TokensConfig

__all__ = ["TOKEN_SETTINGS", "resolve_tokens"]

_CORRUPTION: Settings = {
    "kind": ("corruption", "crop"),
    "strength": ("corruption_strength", None),
    "versions": ("corruption_versions", None),
}
_CHOICE: Settings = {
    "kinds": ("corruption_kinds", ()),
    "similar": ("corruption_similar", 0.8),
    "weigh": ("corruption_weigh", True),
}

TOKEN_SETTINGS = (_CORRUPTION, _CHOICE)
"""Tables of what comes from rows under names of their own."""


def resolve_tokens(
    tokens: TokensConfig,
    method: Method,
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
    path: str,
) -> TokensConfig:
    """The section with its corruption decided; a method without corrupted images has none.

    Raises:
        ConfigError: settings of a corruption that nothing uses.
    """
    corruption = tokens.corruption
    if any(view.images == "corrupted" for view in method.views):
        values = fill(corruption, _CORRUPTION, "tokens.corruption", defaults, filled)
        made = _with_choice(corruption, values, defaults, filled, path)
        return tokens.model_copy(update={"corruption": made})
    if corruption != CorruptionConfig():
        message = explain(
            f"{path}: tokens.corruption",
            got=str(corruption.model_dump(exclude_defaults=True)),
            expected=f"nothing: method {method.name} compares with no corrupted image",
            do="Take the section out, or choose a method that does (mdpo).",
        )
        raise ConfigError(message)
    return tokens


def _with_choice(
    given: CorruptionConfig,
    values: dict[str, object],
    defaults: Mapping[str, Default],
    filled: dict[str, Default],
    path: str,
) -> CorruptionConfig:
    """The corruption with how one of several versions is chosen; one version is no choice.

    Raises:
        ConfigError: settings of a choice where there is one version.
    """
    if values["versions"] in (None, 1):
        named = [name for name in _CHOICE if getattr(given, name) not in (None, ())]
        if named:
            message = explain(
                f"{path}: tokens.corruption.{named[0]}",
                got=getattr(given, named[0]),
                expected="nothing: it says how one of several versions is chosen, and there is one",
                do="Set tokens.corruption.versions above 1.",
            )
            raise ConfigError(message)
        return CorruptionConfig.model_validate(values)
    asked = given.model_copy(update={"kinds": given.kinds or ((given.kind,) if given.kind else None)})
    chosen = {
        name: value
        for name, value in fill(asked, _CHOICE, "tokens.corruption", defaults, filled).items()
        if name in _CHOICE
    }
    return CorruptionConfig.model_validate({**values, **chosen})

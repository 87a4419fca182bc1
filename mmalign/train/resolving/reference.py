"""What a run compares with: the section `reference`."""

from collections.abc import Mapping

from mmalign.errors import ConfigError, explain
from mmalign.methods.row import Default, Method
from mmalign.train.sections import ReferenceConfig, RunConfig

__all__ = ["SYNC", "require_stored_fits", "resolve_reference"]

# TRL's values, for methods without their own.
SYNC = {"sync_every": 512, "mixing": 0.6}


def resolve_reference(
    config: RunConfig, method: Method, defaults: Mapping[str, Default], filled: dict[str, Default], path: str
) -> ReferenceConfig:
    """The reference with the settings of a moving one decided; a method whose own moves gets it from `auto`.

    Raises:
        ConfigError: settings of a synced reference with another one, or a dropout that would blur it.
    """
    reference = config.reference
    if method.reference == "pool" and config.adapter.dropout > 0:
        message = (
            f"{path}: the earlier checkpoints that method {method.name} compares with need adapter.dropout 0"
        )
        raise ConfigError(message)
    is_synced = reference.kind == "synced" or (reference.kind == "auto" and method.reference == "synced")
    given = [name for name in SYNC if getattr(reference, name) is not None]
    if not is_synced:
        if given:
            message = explain(
                f"{path}: reference.{given[0]}",
                got=getattr(reference, given[0]),
                expected=f"no value: the reference {reference.kind} does not follow the policy by it",
                do="Set reference.kind=synced, or take the setting out.",
            )
            raise ConfigError(message)
        if reference.kind == "auto" and method.reference == "ema":
            if config.adapter.dropout > 0:
                message = f"{path}: the averaged reference of method {method.name} needs adapter.dropout 0"
                raise ConfigError(message)
            return ReferenceConfig.model_validate({**reference.model_dump(), "kind": "ema"})
        return reference
    if config.adapter.dropout > 0:
        message = f"{path}: the synced reference of method {method.name} needs adapter.dropout 0"
        raise ConfigError(message)
    missing = [name for name in SYNC if name not in given]
    filled |= {f"reference.{name}": defaults[name] for name in missing if name in defaults}
    values = {name: defaults[name].value if name in defaults else SYNC[name] for name in missing}
    return ReferenceConfig.model_validate({**reference.model_dump(), "kind": "synced", **values})


def require_stored_fits(config: RunConfig, method: Method, path: str) -> None:
    """Stored reference scores belong to draws and answers that are known before training.

    Raises:
        ConfigError: the draws depend on the policy, or the objective reads more than scores.
    """
    if config.reference.kind == "stored" and config.likelihood.kind == "tokens":
        from mmalign import objectives

        needs = method.needs | objectives.row(method.objective).needs
        reasons = [
            f"its objective reads {name}, for which the reference has to run"
            for name in ("kl", "reference_entropy")
            if name in needs
        ]
        if method.reference in ("ema", "synced"):
            reasons.append(f"its reference moves ({method.reference})")
        if any(view.images == "corrupted" for view in method.views):
            reasons.append("images are corrupted anew at every visit")
        if reasons:
            message = explain(
                f"{path}: reference.kind",
                got="stored",
                expected=f"auto, adapters_off or frozen with method {method.name}: {'; '.join(reasons)}",
            )
            raise ConfigError(message)
        return
    if config.reference.kind == "stored" and "preference" in method.needs:
        message = explain(
            f"{path}: reference.kind",
            got="stored",
            expected=f"auto, adapters_off or frozen: method {method.name} compares frames, and what is "
            "stored are errors of whole clips",
        )
        raise ConfigError(message)
    if config.reference.kind == "stored" and config.likelihood.kind != "elbo":
        message = explain(
            f"{path}: reference.kind",
            got="stored",
            expected=f"auto, adapters_off or frozen: with likelihood {config.likelihood.kind} the noised "
            "samples depend on the policy, so that nothing can be computed before",
        )
        raise ConfigError(message)

"""The row of a method: everything that says how a published method is put together, as data.

One row answers five questions (data, likelihood, reference, objective, defaults per family) and carries the
evidence: paper, official code, departures from it, parity cases. A new paper is a new row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from mmalign.batch import DataKind
from mmalign.errors import ConfigError, explain

__all__ = [
    "FIXES",
    "ON_ERRORS",
    "OWN",
    "ROLLOUTS",
    "Default",
    "Fixes",
    "LikelihoodKind",
    "Mark",
    "Method",
    "OnErrors",
    "Status",
    "Taxonomy",
    "View",
]

Mark = Literal["paper", "code", "ours"]
"""Where a number comes from: the paper's text, the official code, or us."""

Status = Literal["parity", "world", "trained", "formula", "experimental"]
"""parity: equals official numbers; world: also improves its toy world; trained: also a real model;
formula: the formula of the paper or the code as read, held by a plain re-statement, without official numbers;
experimental: some formula or constant could not be verified (`unverified` says which)."""

LikelihoodKind = Literal["tokens", "elbo", "inversion", "on_policy", "transition", "reward"]
"""Where scores come from. Only tokens give probabilities of a finite vocabulary.

elbo: denoising errors at a drawn timestep; inversion: the same where the policy's own inversion arrives;
on_policy: the same, some candidates being states the policy visited; transition: Gaussian
log-probabilities of sampler steps; reward: no likelihood, the reward of a sample through which gradients
flow."""

ROLLOUTS: Mapping[str, str] = MappingProxyType(
    {
        "best_of_n": "samples of the current policy per prompt, scored; the best against the worst",
        "stepwise": "pools of candidates at every sampler step, scored by a step-aware preference model",
        "expert_states": "states and predictions of a snapshot of the policy against images of the data",
        "self_play": "a sample of an earlier checkpoint against the chosen image of the data",
        "group": "a group of stochastic samples per prompt with rewards; every step's log-probability",
        "backpropagation": "samples whose last steps carry the reward's gradient",
        "mixed": "best_of_n in a share of the micro-batches, pairs of the data in the others",
        "bias_driven": "the data's answer against what the current policy writes with the images hidden",
        "one_step": "samples of a one-step generator, with the gradient of reward and distance to a teacher",
    }
)
"""Ways of making candidates that a training run knows; other texts in `Method.rollout` are for readers."""

Fixes = Literal[
    "baseline",
    "label_noise",
    "overfitting",
    "displacement",
    "length",
    "reference_cost",
    "unpaired",
    "lists",
    "strength",
    "off_policy",
    "diversity",
    "credit",
    "temperature",
    "objectives",
    "exploration",
    "grounding",
    "stability",
]
"""What a method mends; the catalogue is sorted by it."""

FIXES: Mapping[Fixes, str] = MappingProxyType(
    {
        "baseline": "preferences without a reward model or sampling",
        "label_noise": "wrong, uncertain or tied labels",
        "overfitting": "margins that grow without end on clear pairs",
        "displacement": "the chosen answer becoming less likely",
        "length": "length taken for quality",
        "reference_cost": "memory and time of a reference model",
        "unpaired": "thumbs instead of pairs, and the absolute level of a score",
        "lists": "rankings and graded rewards of several candidates",
        "strength": "how much better one candidate is",
        "off_policy": "pairs the policy would never have drawn",
        "diversity": "mode seeking: what the divergence keeps",
        "credit": "which tokens, segments or frames matter",
        "temperature": "one beta for pairs of different kinds",
        "objectives": "several rewards, tasks or people at once",
        "exploration": "learning from the policy's own samples",
        "grounding": "answers that ignore the image or clip",
        "stability": "steps that harm what was learned",
    }
)

OnErrors = Literal["direct", "pointwise", "reference_free", "axis", "exponential", "supervised", "outside"]
"""How a loss takes to denoising errors instead of log-likelihoods."""

ON_ERRORS: Mapping[OnErrors, str] = MappingProxyType(
    {
        "direct": "a difference of log-ratios: rescale beta and margins to the size of an error; share "
        "timestep and noise within the pair",
        "pointwise": "the absolute level matters: one draw is noisy and its mean depends on the "
        "timestep; use a zero point",
        "reference_free": "errors of two images differ by how hard the images are: add the chosen error "
        "itself, keep beta small",
        "axis": "there are no tokens: the inner axis is timesteps, frames or segments, and lengths are equal",
        "exponential": "exponentials amplify the noise of a one-timestep error: fold beta into the score "
        "first",
        "supervised": "the error itself is what falls: nothing to share within a pair, nothing to rescale",
        "outside": "nothing in the loss: the rule works outside it",
    }
)


OWN = "own"
"""What a `View` becomes whose words are the model's own."""


@dataclass(frozen=True, slots=True)
class Default:
    """One recommended value with its evidence."""

    value: float | int | str | bool
    mark: Mark
    note: str = ""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Data strategy, learning framework, constraint, model property: the axes of the survey arXiv 2503.11701.

    Args:
        data: feedback and granularity: "pairwise", "pointwise", "listwise", with ", token" or ", segment".
        framework: "offline", "online", "self-play", "multi-objective", "supervised".
        constraint: the divergence and its reference: "reverse KL", "forward KL", "none", "moving reference".
        model_property: what of the trained model it is about: "alignment", "length", "likelihood",
            "robustness", "diversity", "calibration".
    """

    data: str = "pairwise"
    framework: str = "offline"
    constraint: str = "reverse KL"
    model_property: str = "alignment"


@dataclass(frozen=True)
class View:
    """A candidate that training makes: an answer of the row under other images.

    Args:
        answer: which candidate's words.
        images: "corrupted" ones, drawn once per row, or "blank".
        becomes: "candidate", one more for the objective; "own", one more that holds, instead of the words,
            the token likeliest under these images at every position of them, scored beside the answer's own
            images; or the name of an extra input that holds the scores of these answers, without gradient.
    """

    answer: int
    images: Literal["corrupted", "blank"] = "corrupted"
    becomes: str = "candidate"


@dataclass(frozen=True)
class Method:
    """One published method.

    Args:
        name: unique, qualified where the literature collides.
        title: the paper's title.
        paper: arXiv id, or "" when there is none.
        year: of the first version.
        objective: name in the objective registry; "" when the method is no objective of scores.
        likelihood: "elbo", "tokens", "transition", "inversion"; "" for a bare text objective usable with any.
        reference: "adapters_off | frozen | ..." default kind, or "none".
        data: pairs, lists or unpaired.
        rollout: where candidates come from, "" for offline data; a key of `ROLLOUTS` trains from a config.
        objective_arguments: arguments of the builder that define the method (not defaults to tune).
        defaults: family name to (setting to `Default`); "*" holds for every family. Settings are the run
            config's
            keys: `beta`, `effective_batch`, `learning_rate` (effective), `steps`, `warmup_steps`,
                `optimizer`, ...
        formula: plain text.
        departures: what we do differently from the official code, and why.
        couples_rows: the loss of a row depends on its batch mates (KTO's zero point, pooled lambda).
        needs: what the objective reads: "reference", "reward", "kl", "length", "prediction".
        parity: names of parity cases that pin it.
        official_code: repository and commit.
        status: how far it is proven.
        taxonomy: the survey's axes.
        fixes: what it mends, a key of `FIXES`.
        on_errors: how its loss takes to denoising errors, a key of `ON_ERRORS`.
        refuses: likelihoods it makes no sense on, each with the reason.
        unverified: which part of an experimental row nobody could check.
        published: hyperparameters of the objective as released, for printing; never applied to a run.
        symbolic: the preference as a formula of logic (arXiv 2412.17696), "" where none is known.
        function: dotted name of a public function or class: what the method does outside its objective, or
            the loss itself when it has no objective; "" otherwise.
        link: address of a source that is not on arXiv.
        views: further candidates that a training run makes of a row: answers beside a corrupted image, with
            what becomes of their scores.
    """

    name: str
    title: str
    paper: str
    year: int
    objective: str
    likelihood: str = ""
    reference: str = "frozen"
    data: DataKind = "pairs"
    rollout: str = ""
    objective_arguments: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Default]] = field(default_factory=dict)
    formula: str = ""
    departures: tuple[str, ...] = ()
    couples_rows: bool = False
    needs: frozenset[str] = frozenset()
    parity: tuple[str, ...] = ()
    official_code: str = ""
    status: Status = "formula"
    taxonomy: Taxonomy = field(default_factory=Taxonomy)
    fixes: Fixes = "baseline"
    on_errors: OnErrors = "direct"
    refuses: Mapping[str, str] = field(default_factory=dict)
    unverified: str = ""
    published: Mapping[str, Default] = field(default_factory=dict)
    symbolic: str = ""
    function: str = ""
    link: str = ""
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        """Freeze the mappings and check what can be checked without importing anything."""
        if not self.name.isidentifier():
            message = explain("method name", got=self.name, expected="a Python identifier")
            raise ConfigError(message)
        parts = self.function.split(".")
        is_dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
        if (self.function and not is_dotted) or not (self.function or self.objective):
            message = explain(
                f"method {self.name} function",
                got=self.function,
                expected="package.module.name; only a method with an objective may do without",
            )
            raise ConfigError(message)
        if self.status in ("parity",) and not self.parity:
            message = explain(
                f"method {self.name}", got="status parity and no case", expected="the name of a parity case"
            )
            raise ConfigError(message)
        if (self.status == "experimental") != bool(self.unverified):
            message = explain(
                f"method {self.name}",
                got=f"status {self.status} and unverified {self.unverified!r}",
                expected="a text that says what is unverified, exactly on experimental rows",
            )
            raise ConfigError(message)
        for text, known, what in ((self.fixes, FIXES, "fixes"), (self.on_errors, ON_ERRORS, "on_errors")):
            if text not in known:
                raise ConfigError(explain(f"method {self.name} {what}", got=text, expected=", ".join(known)))
        object.__setattr__(self, "refuses", MappingProxyType(dict(self.refuses)))
        object.__setattr__(self, "published", MappingProxyType(dict(self.published)))
        object.__setattr__(self, "objective_arguments", MappingProxyType(dict(self.objective_arguments)))
        frozen = {family: MappingProxyType(dict(values)) for family, values in self.defaults.items()}
        object.__setattr__(self, "defaults", MappingProxyType(frozen))

    def defaults_for(self, family: str, modality: str = "") -> dict[str, Default]:
        """Recommended settings for one family: "*" overlaid by its modality's ("language") and its own."""
        layers = [self.defaults.get(name, {}) for name in ("*", modality, family)]
        return {key: value for layer in layers for key, value in layer.items()}

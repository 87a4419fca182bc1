"""What `mmalign pairs` runs: a suite (prompts, models, noise, rewards) and how pairs are made of it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmalign.errors import ConfigError, explain
from mmalign.evals.pairs.selection import Rule
from mmalign.evals.prompts import PUBLIC_SETS
from mmalign.evals.suite import Suite, read_suite_as

__all__ = ["DuplicatesConfig", "LabelConfig", "PairPlan", "SelectionConfig", "WeightConfig", "read_plan"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DuplicatesConfig(_Section):
    """Which candidates of a prompt count as the same picture; the first of them stays."""

    by: Literal["none", "bytes", "perceptual", "embedding"] = Field(
        "perceptual", description="bytes: equal files; perceptual: also equal but for some bits of a hash"
    )
    max_bits: int = Field(3, ge=0, le=64, description="perceptual: bits of 64 that may differ")
    cosine: float = Field(0.98, gt=0, le=1, description="embedding: above this they are the same")
    embeddings: str | None = Field(
        None, description="parquet with the columns sha256 (of the file) and embedding (list of numbers)"
    )


class LabelConfig(_Section):
    """How sure a pair is."""

    how: Literal["hard", "votes", "smpo"] = Field(
        "hard",
        description="hard: 1; votes: share of rewards that put the winner first; smpo: softmax of the two "
        "min-max normalised PickScore cosines, and the higher-scored one wins",
    )
    reward: str | None = Field(None, description="smpo: title of a PickScore reward")
    logit_scale: float = Field(
        100.0, gt=0, description="smpo: exp(logit scale) its scores are divided by; 1 if they are cosines"
    )


class WeightConfig(_Section):
    """How much a pair counts."""

    how: Literal["none", "gap", "duplication", "rarity"] = Field(
        "none",
        description="gap: GAPO; duplication: (constant / p)^beta, VideoDPO's code; rarity: "
        "(p_max / p)^alpha, its paper",
    )
    reward: str | None = Field(None, description="title of the reward it looks at; the standing by default")
    base: float = Field(2.0, gt=1)
    scale: float = Field(
        100.0, gt=0, description="gap: the score of `reward` that counts as full marks, in its own unit"
    )
    constant: float = Field(0.72, gt=0)
    beta: float = Field(1.0, ge=0)
    alpha: float = Field(0.72, ge=0)
    bin_width: float = Field(0.01, gt=0, description="of the histogram, in the unit of the score")
    mean_one: bool = Field(False, description="divide by the mean, so that learning rates keep their meaning")


class SelectionConfig(_Section):
    """From scored candidates to rows."""

    make: Literal["pairs", "rankings"] = "pairs"
    rule: Rule = Field("best_worst", description="who meets whom; rankings: pareto ranks by fronts")
    standing: Literal["win_probability", "rank", "z", "minmax", "raw"] = Field(
        "win_probability", description="how rewards become one number; raw: one reward in its own unit"
    )
    rewards: dict[str, float] = Field(
        default_factory=dict, description="title: weight of the rewards that decide; all alike by default"
    )
    margin: float = Field(0.0, ge=0, description="gap of standing a pair must exceed")
    relevance: str | None = Field(None, description="title of the reward the standing is multiplied by (R3)")
    relevance_bounds: tuple[float, float] | None = Field(None, description="what counts as 0 and as 1 there")
    likelihood: str | None = Field(None, description="hard: title of the model's own log-probability")
    thresholds: dict[str, tuple[float | None, float | None]] = Field(
        default_factory=dict, description="title: [least, most]; candidates outside are left out"
    )
    duplicates: DuplicatesConfig = DuplicatesConfig()
    max_per_prompt: int | None = Field(None, ge=1, description="pairs of one prompt, widest gap first")
    label: LabelConfig = LabelConfig()
    weight: WeightConfig = WeightConfig()
    layout: Literal["jsonl", "parquet", "pickapic"] = Field(
        "parquet", description="pickapic holds the pictures inside; the others beside them"
    )
    images: Literal["copy", "link"] = Field("copy", description="link: hard links where the disk allows")

    @model_validator(mode="after")
    def _fits(self) -> "SelectionConfig":
        if self.layout == "pickapic" and self.make != "pairs":
            message = "layout pickapic holds pairs; rankings need jsonl or parquet"
            raise ValueError(message)
        if self.label.how == "smpo" and self.label.reward is None:
            message = "label smpo needs label.reward, the title of a PickScore reward"
            raise ValueError(message)
        if self.weight.how == "gap" and self.weight.reward is None:
            message = "weight gap needs weight.reward: its scale is in the unit of one reward"
            raise ValueError(message)
        if self.duplicates.by == "embedding" and self.duplicates.embeddings is None:
            message = "duplicates by embedding need duplicates.embeddings, a parquet file"
            raise ValueError(message)
        if self.relevance is not None and self.standing not in ("win_probability", "minmax"):
            message = "relevance multiplies a standing >= 0: win_probability or minmax"
            raise ValueError(message)
        if self.standing == "raw" and len(self.rewards) != 1:
            message = "standing raw takes one reward: name it under selection.rewards"
            raise ValueError(message)
        return self

    def titles(self) -> list[str]:
        """Every reward the settings name."""
        single = (self.relevance, self.likelihood, self.label.reward, self.weight.reward)
        named = [*self.rewards, *self.thresholds, *(title for title in single if title is not None)]
        return list(dict.fromkeys(named))


class PairPlan(Suite):
    """A suite whose pictures become preference data.

    Prompts of held-out sets never enter. Every public benchmark is looked for unless it is waived by name,
    and the card of the data says which were waived.
    """

    prompts: list[str] = Field(default_factory=list, description="files or names of public sets")
    exclude: list[str] = Field(
        default_factory=lambda: sorted(PUBLIC_SETS),
        description="prompt sets that must not be trained on: names, files, or NAME=FILE",
    )
    waived: list[str] = Field(
        default_factory=list, description="names under exclude that are not on this machine and not checked"
    )
    selection: SelectionConfig = SelectionConfig()

    def column_titles(self) -> list[str]:
        """Titles of the rewards; further outputs are TITLE.OUTPUT."""
        return [reward.title or reward.name for reward in self.rewards]


def read_plan(path: str | Path, overrides: list[str] | None = None) -> PairPlan:
    """The plan of a YAML file, with `section.key=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, or a value that does not fit; names the file and the key.
    """
    plan = read_suite_as(PairPlan, path, overrides)
    titles = plan.column_titles()
    for title in plan.selection.titles():
        if title not in titles and title.partition(".")[0] not in titles:
            message = explain(f"{path} selection", got=title, expected=f"a reward ({', '.join(titles)})")
            raise ConfigError(message)
    return plan

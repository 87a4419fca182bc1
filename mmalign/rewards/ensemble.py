"""Several rewards as one reward, with their disagreement beside the value."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.rewards.aggregation import (
    aggregate,
    combine,
    group_numbers,
    groups_of,
    member_shares,
    parse_how,
)
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample

__all__ = ["Ensemble", "Member", "Scale", "is_relative", "measure_scales"]


class Scale(NamedTuple):
    """What turns a reward's unit into one that members share: (value - center) / spread.

    Args:
        center: value that counts as 0, for example the mean over a reference set.
        spread: difference that counts as 1, above 0.
    """

    center: float
    spread: float


@dataclass(frozen=True)
class Member:
    """One reward of an ensemble.

    Args:
        reward: what scores.
        output: which of its outputs; "" takes the first.
        name: column of its values; "" takes the reward's name, with the output where one was named.
    """

    reward: Reward
    output: str = ""
    name: str = ""

    @property
    def column(self) -> int:
        """Index of the output.

        Raises:
            UnknownNameError: the reward has no such output.
        """
        outputs = self.reward.card.outputs
        if self.output and self.output not in outputs:
            kind = f"output of {self.reward.card.name}"
            raise unknown_name(kind, self.output, outputs)
        return outputs.index(self.output) if self.output else 0

    @property
    def title(self) -> str:
        """Name of its column."""
        own = self.reward.card.name
        return self.name or (f"{own}.{self.output}" if self.output else own)


def is_relative(reward: Reward) -> bool:
    """Whether values depend on the other candidates of a call: they can be neither cached nor split."""
    return bool(getattr(reward, "relative", False))


class Ensemble:
    """Several rewards as one.

    Outputs: `score`; `spread`, the members' standard deviation in the unit of the score; then each member's
    own value in its own unit.

    The relative ways ("mean_z", "mean_minmax", "mean_rank", "mean_win_probability" and those of min and
    penalised) compare a sample with the other candidates of its group in the same call of `score`: such an
    ensemble says `relative` True, and a lone candidate gets NaN. "mean", "min" and "penalised" need `scales`
    and depend on the sample alone.

    Args:
        members: rewards, or `Member(reward, output=..., name=...)`.
        how: a name of `mmalign.rewards.aggregation.HOWS`.
        weights: one per member in their order, or by name; None counts all alike.
        scales: by name, for "mean", "min" and "penalised"; `measure_scales` finds them on a reference set.
        group: what makes samples candidates of one group: "prompt", "all" or "extras.NAME".
        penalty: of the penalised ways.
        name: what it is called in tables.

    Raises:
        ConfigError: no members or two of one name; scales that are missing, useless or not positive; a
            relative member.
        UnknownNameError: `how`, an output, or a name in weights or scales that is none.
    """

    def __init__(
        self,
        members: Sequence[Reward | Member],
        *,
        how: str = "mean_win_probability",
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scales: Mapping[str, tuple[float, float]] | None = None,
        group: str = "prompt",
        penalty: float = 1.0,
        name: str = "ensemble",
    ) -> None:
        self.members = tuple(one if isinstance(one, Member) else Member(one) for one in members)
        self.rule, self.unit = parse_how(how)
        self.how, self.group, self.penalty = how, group, penalty
        self.columns = tuple(member.column for member in self.members)
        self.names = tuple(member.title for member in self.members)
        self._check_members(name)
        if isinstance(weights, Mapping):
            _require_names("weights", weights, self.names)
            weights = [float(weights.get(one, 1.0)) for one in self.names]
        self.weights = None if weights is None else tuple(weights)
        self.share = member_shares(self.weights, len(self.members))
        self.scales = self._checked_scales(scales)
        groups_of([], group)
        aggregate(torch.zeros(0, len(self.members)), torch.zeros(0, dtype=torch.int64), penalty=penalty)
        self._card = self._make_card(name)

    def _check_members(self, name: str) -> None:
        if not self.members:
            raise ConfigError(explain(f"{name} members", got="[none]", expected="at least one reward"))
        taken = {"score", "spread"}
        for one, member in zip(self.names, self.members, strict=True):
            if one in taken:
                message = explain(
                    f"{name} members",
                    got=one,
                    expected="a name of its own for every column",
                    do="Name them: Member(reward, name=...).",
                )
                raise ConfigError(message)
            taken.add(one)
            if is_relative(member.reward):
                got = f"[{one}, whose values depend on the other candidates]"
                raise ConfigError(explain(f"{name} members", got=got, expected="values of single samples"))

    def _checked_scales(self, given: Mapping[str, tuple[float, float]] | None) -> tuple[Scale, ...]:
        if self.unit != "scaled":
            if given:
                do = "Leave scales out, or use how='mean', 'min' or 'penalised'."
                message = explain("ensemble scales", got=[*given], expected=f"none for {self.how!r}", do=do)
                raise ConfigError(message)
            return tuple(Scale(0.0, 1.0) for _ in self.members)
        scales = {one: Scale(*scale) for one, scale in (given or {}).items()}
        _require_names("scales", scales, self.names)
        lacking = [one for one in self.names if one not in scales]
        if lacking:
            message = explain(
                "ensemble scales",
                got=f"[none for {', '.join(lacking)}]",
                expected=f"(center, spread) of every member for how={self.how!r}: rewards' raw values have "
                "scales that differ a hundredfold",
                do="Measure them with measure_scales, or compare within prompts (mean_win_probability).",
            )
            raise ConfigError(message)
        for one, scale in scales.items():
            if not (math.isfinite(scale.center) and math.isfinite(scale.spread) and scale.spread > 0):
                where = f"ensemble scale of {one}"
                raise ConfigError(explain(where, got=tuple(scale), expected="finite, with a spread above 0"))
        return tuple(scales[one] for one in self.names)

    def _make_card(self, name: str) -> Card:
        cards = [member.reward.card for member in self.members]
        meaning = {
            "scaled": "members' spreads above their centers",
            "z": "standard deviations above the prompt's candidates",
            "minmax": "0 to 1 within the prompt's candidates",
            "rank": "rank within the prompt's candidates, 1 the best",
            "win_probability": "share of the prompt's other candidates that are beaten, 0 to 1",
        }[self.unit]
        licences = ", ".join(dict.fromkeys(card.licence for card in cards))
        return Card(
            name=name,
            title=f"{self.how} of {', '.join(self.names)}",
            modality=cards[0].modality,
            outputs=("score", "spread", *self.names),
            scale=f"{meaning}; {self.rule} over members",
            higher_is_better=self.unit != "rank",
            licence=licences,
            differentiable=not self.relative and all(card.differentiable for card in cards),
            needs=tuple(dict.fromkeys(need for card in cards for need in card.needs)),
        )

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    @property
    def relative(self) -> bool:
        """Whether a value depends on the other candidates of the same call."""
        return self.unit != "scaled"

    def provenance(self) -> Mapping[str, Any]:
        """How the members are combined, and what each of them is."""
        members = [
            {
                "name": one,
                "output": member.reward.card.outputs[column],
                "higher_is_better": member.reward.card.higher_is_better,
                "share": float(share),
                "scale": list(scale) if self.unit == "scaled" else None,
                "fingerprint": member.reward.fingerprint(),
                "made_of": dict(member.reward.provenance()),
            }
            for one, member, column, share, scale in zip(
                self.names, self.members, self.columns, self.share, self.scales, strict=True
            )
        ]
        settings: dict[str, Any] = {"name": self.card.name, "how": self.how, "code": 1, "members": members}
        if self.relative:
            settings["group"] = self.group
        if self.rule == "penalised":
            settings["penalty"] = self.penalty
        return settings

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of `provenance`."""
        text = json.dumps(self.provenance(), sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples: score, spread, then each member's own.

        A sample that a member cannot score has no score, and the error names the member; what the other
        members said stands in their columns, and the other samples are compared as if it were not there.
        """
        found: dict[int, Scored] = {}
        for member in self.members:  # two outputs of one reward cost one forward
            if id(member.reward) not in found:
                found[id(member.reward)] = member.reward.score(samples, batch_size=batch_size)
        scored = [found[id(member.reward)] for member in self.members]
        raw = torch.stack(
            [one.values[:, column] for one, column in zip(scored, self.columns, strict=True)], dim=1
        )
        groups = group_numbers(groups_of(samples, self.group) if self.relative else [0] * len(samples))
        combined = aggregate(
            self._oriented(raw), groups, how=self.how, weights=self.weights, penalty=self.penalty
        )
        values = torch.cat([torch.stack([combined.score, combined.spread], dim=1), raw], dim=1)
        errors = [
            self._error(place, raw[place], scored, alone=bool(combined.alone[place]))
            for place in range(len(samples))
        ]
        truncated = tuple(any(one.truncated[place] for one in scored) for place in range(len(samples)))
        answers = tuple(self._answers(place, scored) for place in range(len(samples)))
        return Scored(values, self.card.outputs, tuple(errors), truncated, answers)

    def score_tensor(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " sample"]:
        """Scores of pictures in [0, 1], with the graph to the pixels.

        Raises:
            ConfigError: a relative ensemble, or a member without gradients.
        """
        if not self.card.differentiable:
            blunt = [one.reward.card.name for one in self.members if not one.reward.card.differentiable]
            got = f"[{self.how}]" if self.relative else f"[members without gradients: {', '.join(blunt)}]"
            expected = "how='mean', 'min' or 'penalised' over differentiable members"
            raise ConfigError(explain(f"{self.card.name}.score_tensor", got=got, expected=expected))
        if any(self.columns):
            got = "[a member's second output]"
            expected = "first outputs: a tensor score is one number"
            raise ConfigError(explain(f"{self.card.name}.score_tensor", got=got, expected=expected))
        columns = [member.reward.score_tensor(pixels, prompts) for member in self.members]  # type: ignore[attr-defined]
        units = self._oriented(torch.stack(columns, dim=1))
        return combine(units, self.share.to(units), self.rule, self.penalty)[0]

    def _oriented(self, raw: Float[Tensor, "sample member"]) -> Float[Tensor, "sample member"]:
        """Higher is better for every member; in shared units where the members have scales."""
        signs = [1.0 if member.reward.card.higher_is_better else -1.0 for member in self.members]
        center, spread = torch.tensor([*self.scales], dtype=torch.float64).unbind(1)
        sign = torch.tensor(signs, dtype=torch.float64)
        return (raw - center.to(raw)) / spread.to(raw) * sign.to(raw)

    def _error(self, place: int, values: Tensor, scored: Sequence[Scored], *, alone: bool) -> str | None:
        lines = [
            f"{one}: {result.errors[place] or 'the value is not finite'}"
            for one, value, result in zip(self.names, values.tolist(), scored, strict=True)
            if not math.isfinite(value)
        ]
        if alone:
            lines = [
                f"{self.card.name}: the only complete candidate of its {self.group}; {self.how} compares "
                "candidates. Score several in one call, or use how='mean' with scales."
            ]
        return "; ".join(lines) or None

    def _answers(self, place: int, scored: Sequence[Scored]) -> str | None:
        """What generating members wrote, by name, as JSON."""
        texts = {
            one: result.raw[place]
            for one, result in zip(self.names, scored, strict=True)
            if result.raw[place] is not None
        }
        return json.dumps(texts, ensure_ascii=False) if texts else None


def _require_names(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for one in given:
        if one not in known:
            kind = f"ensemble {what}: member"
            raise unknown_name(kind, one, known)


def measure_scales(
    members: Sequence[Reward | Member], samples: Sequence[Sample], *, batch_size: int = 16
) -> dict[str, Scale]:
    """Mean and standard deviation of every member over some samples, for `Ensemble(scales=...)`.

    Args:
        members: as for `Ensemble`.
        samples: at least two that every member can score; failed ones are left out.
        batch_size: of the rewards.

    Raises:
        ConfigError: fewer than two finite values, or all equal: they say nothing about a scale.
    """
    scales = {}
    for member in [one if isinstance(one, Member) else Member(one) for one in members]:
        values = member.reward.score(samples, batch_size=batch_size).values[:, member.column]
        values = values[torch.isfinite(values)]
        if len(values) < 2 or bool((values == values[0]).all()):
            got = f"[{len(values)} finite values{', all equal' if len(values) > 1 else ''}]"
            raise ConfigError(explain(f"scale of {member.title}", got=got, expected="two that differ"))
        scales[member.title] = Scale(float(values.mean()), float(values.std(correction=0)))
    return scales

"""What the rows of methods for vision-language models share: marks of evidence, formulas, borrowed losses."""

from collections.abc import Mapping

from mmalign.methods.row import Default, Mark, Method, Taxonomy, View

__all__ = ["CORRUPTED", "DPO_FORMULA", "GROUNDED", "as_dpo", "code", "ours", "paper", "with_nll"]

Value = float | int | str | bool

DPO_FORMULA = (
    "r_c = sum over the answer's tokens of (log p of the policy - log p of the reference)\n"
    "z = beta * (r of chosen - r of rejected)\nloss = -log sigmoid(z)"
)
CORRUPTED = (View(0),)
GROUNDED = Taxonomy(model_property="grounding")


def code(**values: Value) -> dict[str, Default]:
    """Settings of the official code."""
    return _marked("code", values)


def paper(**values: Value) -> dict[str, Default]:
    """Settings of the paper's text."""
    return _marked("paper", values)


def _marked(mark: Mark, values: Mapping[str, Value]) -> dict[str, Default]:
    return {name: Default(value, mark) for name, value in values.items()}


def ours(note: str, **values: Value) -> dict[str, Default]:
    """Settings that are ours."""
    return {name: Default(value, "ours", note) for name, value in values.items()}


def with_nll(name: str, title: str, paper: str, year: int, coefficient: Default, **settings: Value) -> Method:
    """DPO with the chosen answer's negative log-likelihood per token: several papers' loss."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        year=year,
        objective="rpo_sft",
        likelihood="tokens",
        objective_arguments={"normaliser": "sequence_mean"},
        formula=f"{DPO_FORMULA} + coefficient * mean negative log-likelihood of the chosen answer's tokens",
        needs=frozenset({"reference"}),
        defaults={"language": {"coefficient": coefficient, **code(**settings)}},
        fixes="grounding",
        taxonomy=GROUNDED,
    )


def as_dpo(name: str, title: str, paper: str, year: int, official_code: str, **settings: Value) -> Method:
    """DPO as it is: the method lies in its data, and its released settings here."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        year=year,
        objective="dpo",
        likelihood="tokens",
        formula=DPO_FORMULA,
        needs=frozenset({"reference"}),
        official_code=official_code,
        defaults={"language": code(beta=0.1, **settings)},
        fixes="grounding",
        taxonomy=GROUNDED,
    )

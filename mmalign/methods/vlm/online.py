"""Rows of methods whose answers, or some of them, are the current policy's own."""

from mmalign.methods.row import Method, Taxonomy
from mmalign.methods.vlm.parts import DPO_FORMULA, code, ours, paper

__all__ = ["ROWS"]

_FRESH = "the pair's tokens are those that were drawn; an answer that ran out of tokens has no end of turn"
_SETTINGS_OPEN = "the paper's learning rate and beta could not be recovered"

_ONLINE_DPO = Method(
    name="online_dpo",
    title="Direct Language Model Alignment from Online AI Feedback",
    paper="2402.04792",
    year=2024,
    objective="online_dpo",
    likelihood="tokens",
    data="prompts",
    rollout="best_of_n",
    objective_arguments={"base": "dpo"},
    departures=(
        "of any number of answers the best meets the worst (official: of two); equal scores give no pair",
        _FRESH,
    ),
    defaults={
        "language": {
            **code(beta=0.1),
            **ours("more answers than two find a clear pair more often", samples=4),
            **ours("the policy's own distribution", answer_temperature=1.0),
            **ours("half the rate of offline runs: the data move along", learning_rate=5e-6),
        }
    },
    taxonomy=Taxonomy(framework="online"),
)

_MIXED_DPO = Method(
    name="mixed_dpo",
    title="Understanding Alignment in Multimodal LLMs: A Comprehensive Study",
    paper="2407.02477",
    year=2024,
    objective="dpo",
    likelihood="tokens",
    rollout="mixed",
    formula=f"{DPO_FORMULA}\nof a micro-batch all pairs are the data's (probability offline_share), or all "
    "are the better and the worse of the policy's own answers",
    needs=frozenset({"reference"}),
    departures=("any reward judges (paper: LLaVA 1.6 of 34B compares two answers)", _FRESH, _SETTINGS_OPEN),
    defaults={
        "language": {
            **paper(offline_share=0.5, samples=2),
            **ours("as offline DPO", beta=0.1, learning_rate=1e-5),
        }
    },
    fixes="exploration",
    taxonomy=Taxonomy(framework="online", model_property="grounding"),
)

_ONLINE_BDHS = Method(
    name="online_bdhs",
    title="Understanding Alignment in Multimodal LLMs: A Comprehensive Study",
    paper="2407.02477",
    year=2024,
    objective="dpo",
    likelihood="tokens",
    data="chosen",
    rollout="bias_driven",
    formula=f"{DPO_FORMULA}\nrejected = the current policy's continuation of every sentence of the chosen "
    "answer, cut at random, visual tokens hidden",
    needs=frozenset({"reference"}),
    departures=(_SETTINGS_OPEN,),
    defaults={
        "language": {
            **paper(hidden_share=0.99, similar=0.97, hiding_rounds=5, swap=0.5),
            **ours("as offline DPO", beta=0.1, learning_rate=1e-5),
            **ours("of a sentence", answer_tokens=128),
        }
    },
    fixes="grounding",
    taxonomy=Taxonomy(framework="online", model_property="grounding"),
)

ROWS = (_ONLINE_DPO, _MIXED_DPO, _ONLINE_BDHS)

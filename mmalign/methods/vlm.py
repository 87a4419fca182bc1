"""Rows of methods for vision-language models: objectives on token log-probabilities, with released numbers.

Objectives that know no modality (dpo, simpo, kto, ...) run on tokens as they are, from the `PRESET`; a row
stands here where a method needs more than its formula (candidates under other images, numbers of the data)
or where settings were released for such models. What a row leaves open it takes from the row of its
objective.
"""

from collections.abc import Mapping
from types import MappingProxyType

from mmalign.methods.row import OWN, Default, Mark, Method, Taxonomy, View

__all__ = ["PRESET", "ROWS"]

Value = float | int | str | bool

_BETWEEN = "between the released scripts, which train LoRA of rank 64 to 256 at 1e-6 to 5e-5"

PRESET: Mapping[str, Default] = MappingProxyType(
    {
        "learning_rate": Default(1e-5, "ours", _BETWEEN),
        "rank": Default(64, "ours", _BETWEEN),
        "lora_alpha": Default(128, "ours", _BETWEEN),
        "effective_batch": Default(32, "ours", _BETWEEN),
        "schedule": Default("cosine", "ours", "as most released scripts"),
        "warmup_ratio": Default(0.1, "ours", "as most released scripts"),
        "epochs": Default(1, "ours", "as most released scripts"),
    }
)
"""Settings of a language model's run where a method's row has none."""

_DPO_FORMULA = (
    "r_c = sum over the answer's tokens of (log p of the policy - log p of the reference)\n"
    "z = beta * (r of chosen - r of rejected)\nloss = -log sigmoid(z)"
)
_CORRUPTED = (View(0),)


def _code(**values: Value) -> dict[str, Default]:
    """Settings of the official code."""
    return _marked("code", values)


def _paper(**values: Value) -> dict[str, Default]:
    """Settings of the paper's text."""
    return _marked("paper", values)


def _marked(mark: Mark, values: Mapping[str, Value]) -> dict[str, Default]:
    return {name: Default(value, mark) for name, value in values.items()}


def _ours(note: str, **values: Value) -> dict[str, Default]:
    """Settings that are ours."""
    return {name: Default(value, "ours", note) for name, value in values.items()}


_GROUNDED = Taxonomy(model_property="grounding")

_DPO = Method(
    name="dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    paper="2305.18290",
    year=2023,
    objective="dpo",
    defaults={"language": _ours("the value of every released script for such models", beta=0.1)},
)

_MDPO = Method(
    name="mdpo",
    title="mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
    paper="2406.11839",
    year=2024,
    objective="mdpo",
    likelihood="tokens",
    views=_CORRUPTED,
    defaults={
        "language": _code(
            beta=0.1,
            learning_rate=1e-5,
            rank=64,
            lora_alpha=128,
            effective_batch=32,
            schedule="cosine",
            warmup_ratio=0.1,
            epochs=3,
            weight_decay=0.05,
            adam_beta2=0.98,
            corruption="crop",
        )
    },
)

_CHIP = Method(
    name="chip",
    title="CHiP: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs",
    paper="2501.16629",
    year=2025,
    objective="chip",
    likelihood="tokens",
    views=_CORRUPTED,
    defaults={
        "language": {
            **_code(
                beta=0.1,
                token_coefficient=0.1,
                image_coefficient=1.0,
                learning_rate=5e-7,
                effective_batch=32,
                max_grad_norm=20.0,
                epochs=1,
                corruption="diffusion_noise",
                corruption_strength=500.0,
            ),
            **_ours("the released learning rate is that of full fine-tuning", warmup_ratio=0.1),
        }
    },
)

_POVID = Method(
    name="povid",
    title="Aligning Modalities in Vision Large Language Models via Preference Fine-tuning",
    paper="2402.11411",
    year=2024,
    objective="povid",
    likelihood="tokens",
    views=(View(0, becomes=OWN),),
    departures=(
        "its second stage; the first is `povid_text`, from whose model this one goes on",
        "the mean of two losses, as released (the paper mixes log-probabilities)",
        "the noised image is brought back to 8 bits before the processor reads it (official: the processed "
        "tensor is noised); policy and reference see the same one",
    ),
    defaults={
        "language": _code(
            beta=0.1,
            own_share=0.5,
            learning_rate=1e-7,
            rank=128,
            lora_alpha=256,
            epochs=1,
            corruption="diffusion_noise",
            corruption_strength=500.0,
        )
    },
)

_OPA = Method(
    name="opa_dpo",
    title="Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key",
    paper="2501.09695",
    year=2025,
    objective="opa_dpo",
    likelihood="tokens",
    views=(View(0), View(2)),
    defaults={
        "language": _code(
            beta=0.1,
            image_coefficient=0.2,
            anchor_coefficient=1.0,
            learning_rate=1e-6,
            rank=256,
            lora_alpha=512,
            effective_batch=32,
            schedule="cosine",
            warmup_steps=5,
            epochs=4,
            corruption="pixel_mask",
            corruption_strength=0.3,
        )
    },
)

_VDPO = Method(
    name="vdpo_guided",
    title="V-DPO: Mitigating Hallucination in Large Vision Language Models via Vision-Guided DPO",
    paper="2411.02712",
    year=2024,
    objective="vdpo_guided",
    likelihood="tokens",
    views=(View(0, "blank", "imageless_score"), View(1, "blank", "imageless_score")),
    defaults={
        "language": {
            **_code(beta=0.1, learning_rate=1e-6, effective_batch=64, epochs=4, weight_decay=0.05),
            **_ours(
                "the released script has 0, which leaves no gradient; 1 is DPO without guidance",
                guidance=1.5,
            ),
        }
    },
)

_VIDEO = Method(
    name="vdpo_video",
    title="PaMi-VDPO: Mitigating Video Hallucinations by Prompt-Aware Multi-Instance Video Preference "
    "Learning",
    paper="2504.05810",
    year=2025,
    objective="dpo",
    likelihood="tokens",
    data="chosen",
    views=_CORRUPTED,
    formula="candidate 0 = (video, answer), candidate 1 = (augmented video, the same answer)\n"
    "r_c = sum over the answer's tokens of (log p of the policy - log p of the reference)\n"
    "loss = -w log sigmoid(beta * (r_0 - r_1))\n"
    "augmented: of K videos with cosine(features, features of the video) >= tau the one of the largest D\n"
    "D = mean over the answer's tokens of JS(p(. | video), p(. | augmented)) / log 2; w = stop-gradient D",
    needs=frozenset({"reference"}),
    defaults={
        "language": _ours(
            "no number was released",
            beta=0.1,
            corruption="shuffle",
            corruption_versions=5,
            corruption_kinds="reverse shuffle clip frame_mask crop",
            corruption_similar=0.8,
            corruption_weigh=True,
        ),
    },
    status="experimental",
    unverified="loss and choice are read from the abstract; which augmentations, K = 5, tau = 0.8 and the "
    "weight's unit (log 2) are ours",
    fixes="grounding",
    taxonomy=_GROUNDED,
)

_HSA = Method(
    name="hsa_dpo",
    title="Detecting and Mitigating Hallucination in Large Vision Language Models via Fine-Grained AI "
    "Feedback",
    paper="2404.14233",
    year=2024,
    objective="hsa_dpo",
    likelihood="tokens",
    defaults={
        "language": _code(
            beta=0.1, learning_rate=2e-6, rank=128, lora_alpha=256, effective_batch=32, epochs=2
        )
    },
)

_DDPO = Method(
    name="dense_dpo",
    title="RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human "
    "Feedback",
    paper="2312.00849",
    year=2023,
    objective="dense_dpo",
    likelihood="tokens",
    defaults={
        "language": _paper(
            beta=0.5, weight=5.0, normaliser="weight", learning_rate=5e-7, effective_batch=32, epochs=7
        )
    },
)

_RRPO = Method(
    name="rrpo",
    title="Self-Alignment of Large Video Language Models with Refined Regularized Preference Optimization",
    paper="2504.12083",
    year=2025,
    objective="rrpo",
    likelihood="tokens",
    defaults={
        "language": _code(
            beta=0.1,
            alpha=0.01,
            learning_rate=5e-6,
            rank=128,
            lora_alpha=256,
            effective_batch=32,
            schedule="cosine",
            warmup_ratio=0.03,
            epochs=1,
        )
    },
)

_MM = Method(
    name="mm_dpo",
    title="MM-RLHF: The Next Step Forward in Multimodal LLM Alignment",
    paper="2502.10391",
    year=2025,
    objective="mm_dpo",
    likelihood="tokens",
    defaults={
        "language": {
            **_paper(beta=0.1, strength=0.5, rate=0.5, nll_coefficient=0.25),
            **_code(learning_rate=1e-6, epochs=1),
        }
    },
)

_CHEX = Method(
    name="lc_dpo_chexalign",
    title="CheXalign: Preference fine-tuning in chest X-ray interpretation models without human feedback",
    paper="2410.07025",
    year=2024,
    objective="lc_dpo_chexalign",
    likelihood="tokens",
    defaults={
        "language": _code(
            beta=0.05,
            alpha=0.05,
            learning_rate=1e-6,
            effective_batch=32,
            schedule="cosine",
            warmup_ratio=0.1,
            epochs=1,
        )
    },
)

_MPO = Method(
    name="mpo",
    title="Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference "
    "Optimization",
    paper="2411.10442",
    year=2024,
    objective="mpo",
    likelihood="tokens",
    objective_arguments={"delta_rule": "none", "normaliser": "sequence_mean"},
    defaults={
        "language": _ours(
            "recalled, not read: the weights are the paper's",
            beta=0.1,
            preference=0.8,
            quality=0.2,
            generation=1.0,
            learning_rate=5e-6,
            effective_batch=256,
        )
    },
)

_GRAPE = Method(
    name="grape_tpo",
    title="GRAPE: Generalizing Robot Policy via Preference Alignment",
    paper="2411.19309",
    year=2024,
    objective="grape_tpo",
    likelihood="tokens",
    defaults={
        "language": _code(
            beta=0.1,
            learning_rate=2e-5,
            rank=32,
            lora_alpha=32,
            schedule="constant",
            effective_batch=1,
        )
    },
)

_TASKS = Method(
    name="task_preference",
    title="Task Preference Optimization: Improving Multimodal Large Language Models with Vision Task "
    "Alignment",
    paper="2412.19326",
    year=2024,
    objective="",
    reference="none",
    function="mmalign.vlm.task_heads.tpo_loss",
    formula="loss = cross-entropy of the answers + cross-entropy of the task tokens\n"
    "       + sum over tasks of weight * distance of the head's answer from the annotation",
    departures=(
        "small heads in the place of CG-DETR (time) and SAM 2 (masks)",
        "a head reads the state that predicts its token",
    ),
    official_code="OpenGVLab/TPO ed733bd (inference only)",
    status="experimental",
    unverified="training code was never released: which losses the heads train with, their weights and the "
    "three stages' settings could not be read",
    taxonomy=Taxonomy(
        data="pointwise", framework="supervised", constraint="none", model_property="grounding"
    ),
    fixes="grounding",
    on_errors="outside",
)


def _with_nll(
    name: str, title: str, paper: str, year: int, coefficient: Default, **settings: Value
) -> Method:
    """DPO with the chosen answer's negative log-likelihood per token: several papers' loss."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        year=year,
        objective="rpo_sft",
        likelihood="tokens",
        objective_arguments={"normaliser": "sequence_mean"},
        formula=f"{_DPO_FORMULA} + coefficient * mean negative log-likelihood of the chosen answer's tokens",
        needs=frozenset({"reference"}),
        defaults={"language": {"coefficient": coefficient, **_code(**settings)}},
        fixes="grounding",
        taxonomy=_GROUNDED,
    )


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
            **_code(beta=0.1),
            **_ours("more answers than two find a clear pair more often", samples=4),
            **_ours("the policy's own distribution", answer_temperature=1.0),
            **_ours("half the rate of offline runs: the data move along", learning_rate=5e-6),
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
    formula=f"{_DPO_FORMULA}\nof a micro-batch all pairs are the data's (probability offline_share), or all "
    "are the better and the worse of the policy's own answers",
    needs=frozenset({"reference"}),
    departures=("any reward judges (paper: LLaVA 1.6 of 34B compares two answers)", _FRESH, _SETTINGS_OPEN),
    defaults={
        "language": {
            **_paper(offline_share=0.5, samples=2),
            **_ours("as offline DPO", beta=0.1, learning_rate=1e-5),
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
    formula=f"{_DPO_FORMULA}\nrejected = the current policy's continuation of every sentence of the chosen "
    "answer, cut at random, visual tokens hidden",
    needs=frozenset({"reference"}),
    departures=(_SETTINGS_OPEN,),
    defaults={
        "language": {
            **_paper(hidden_share=0.99, similar=0.97, hiding_rounds=5, swap=0.5),
            **_ours("as offline DPO", beta=0.1, learning_rate=1e-5),
            **_ours("of a sentence", answer_tokens=128),
        }
    },
    fixes="grounding",
    taxonomy=Taxonomy(framework="online", model_property="grounding"),
)


def _as_dpo(name: str, title: str, paper: str, year: int, official_code: str, **settings: Value) -> Method:
    """DPO as it is: the method lies in its data, and its released settings here."""
    return Method(
        name=name,
        title=title,
        paper=paper,
        year=year,
        objective="dpo",
        likelihood="tokens",
        formula=_DPO_FORMULA,
        needs=frozenset({"reference"}),
        official_code=official_code,
        defaults={"language": _code(beta=0.1, **settings)},
        fixes="grounding",
        taxonomy=_GROUNDED,
    )


_DATA_METHODS = (
    _with_nll(
        "mia_dpo",
        "MIA-DPO: Multi-Image Augmented Direct Preference Optimization For Large Vision-Language Models",
        "2410.17637",
        2024,
        Default(0.1, "paper", "the ablation's best; the released script has 0"),
        beta=0.1,
        learning_rate=5e-5,
        rank=128,
        lora_alpha=256,
        effective_batch=64,
        schedule="linear",
        warmup_ratio=0.1,
        epochs=1,
    ),
    _with_nll(
        "sym_dpo",
        "SymDPO: Boosting In-Context Learning of Large Multimodal Models with Symbol Demonstration DPO",
        "2411.11909",
        2024,
        Default(1.0, "code"),
        beta=0.1,
        learning_rate=5e-6,
        rank=64,
        lora_alpha=16,
        schedule="linear",
        weight_decay=0.1,
        epochs=1,
    ),
    _with_nll(
        "llava_hound",
        "Direct Preference Optimization of Video Large Multimodal Models from Language Model Reward",
        "2404.01258",
        2024,
        Default(0.1, "ours", "gamma of the released loss is an argument; no value was seen"),
        beta=0.1,
    ),
    _as_dpo(
        "rlaif_v",
        "RLAIF-V: Open-Source AI Feedback Leads to Super GPT-4 Trustworthiness",
        "2405.17220",
        2024,
        "RLHF-V/RLAIF-V 83d917b",
        learning_rate=1e-5,
        rank=64,
        lora_alpha=16,
        effective_batch=8,
        schedule="cosine",
        warmup_ratio=0.05,
        weight_decay=0.01,
        epochs=4,
    ),
    _as_dpo(
        "temple",
        "TEMPLE: Temporal Preference Learning of Video LLMs via Difficulty Scheduling and Pre-SFT Alignment",
        "2503.16929",
        2025,
        "lscpku/TEMPLE 59f135d",
        learning_rate=5e-6,
        rank=32,
        lora_alpha=64,
        effective_batch=16,
        warmup_ratio=0.05,
        epochs=1,
    ),
    _as_dpo(
        "povid_text",
        "Aligning Modalities in Vision Large Language Models via Preference Fine-tuning",
        "2402.11411",
        2024,
        "YiyangZhou/POVID 92c7c67",
        learning_rate=1e-7,
        rank=128,
        lora_alpha=256,
        epochs=3,
    ),
    _as_dpo(
        "ha_dpo",
        "Beyond Hallucinations: Enhancing LVLMs through Hallucination-Aware Direct Preference Optimization",
        "2311.16839",
        2023,
        "opendatalab/HA-DPO 42f72c5",
        learning_rate=2e-6,
        rank=128,
        lora_alpha=256,
        effective_batch=128,
        epochs=1,
    ),
    _as_dpo(
        "silkie",
        "Silkie: Preference Distillation for Large Visual Language Models",
        "2312.10665",
        2023,
        "vlf-silkie/VLFeedback de0bff3",
        learning_rate=1e-5,
        rank=64,
        lora_alpha=16,
        epochs=3,
        weight_decay=0.05,
        adam_beta2=0.98,
    ),
    _as_dpo(
        "sima",
        "Enhancing Visual-Language Modality Alignment in Large Vision Language Models via Self-Improvement",
        "2405.15973",
        2024,
        "umd-huang-lab/SIMA ba9e7ed",
        learning_rate=1e-7,
        rank=128,
        lora_alpha=256,
        epochs=3,
    ),
    _as_dpo(
        "csr",
        "Calibrated Self-Rewarding Vision Language Models",
        "2405.14622",
        2024,
        "YiyangZhou/CSR 353de42",
        learning_rate=1e-7,
        rank=128,
        lora_alpha=256,
        epochs=1,
    ),
)

ROWS = (
    *(_DPO, _MDPO, _CHIP, _POVID, _OPA, _VDPO, _VIDEO, _HSA, _DDPO, _RRPO, _MM, _CHEX, _MPO, _GRAPE, _TASKS),
    *(_ONLINE_DPO, _MIXED_DPO, _ONLINE_BDHS),
    *_DATA_METHODS,
)

"""Rows of methods that weigh the answers of a pair by token, segment or reward, or add terms to them."""

from mmalign.methods.row import Method, Taxonomy
from mmalign.methods.vlm.parts import code, ours, paper

__all__ = ["ROWS"]

_HSA = Method(
    name="hsa_dpo",
    title="Detecting and Mitigating Hallucination in Large Vision Language Models via Fine-Grained AI "
    "Feedback",
    paper="2404.14233",
    year=2024,
    objective="hsa_dpo",
    likelihood="tokens",
    defaults={
        "language": code(beta=0.1, learning_rate=2e-6, rank=128, lora_alpha=256, effective_batch=32, epochs=2)
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
        "language": paper(
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
        "language": code(
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
            **paper(beta=0.1, strength=0.5, rate=0.5, nll_coefficient=0.25),
            **code(learning_rate=1e-6, epochs=1),
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
        "language": code(
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
        "language": ours(
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
        "language": code(
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

ROWS = (_HSA, _DDPO, _RRPO, _MM, _CHEX, _MPO, _GRAPE, _TASKS)

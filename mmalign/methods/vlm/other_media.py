"""Rows of methods whose candidates lie under other images or videos than the row's own."""

from mmalign.methods.row import OWN, Method, View
from mmalign.methods.vlm.parts import CORRUPTED, GROUNDED, code, ours

__all__ = ["ROWS"]

_MDPO = Method(
    name="mdpo",
    title="mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
    paper="2406.11839",
    year=2024,
    objective="mdpo",
    likelihood="tokens",
    views=CORRUPTED,
    defaults={
        "language": code(
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
    views=CORRUPTED,
    defaults={
        "language": {
            **code(
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
            **ours("the released learning rate is that of full fine-tuning", warmup_ratio=0.1),
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
        "language": code(
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
        "language": code(
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
            **code(beta=0.1, learning_rate=1e-6, effective_batch=64, epochs=4, weight_decay=0.05),
            **ours(
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
    views=CORRUPTED,
    formula="candidate 0 = (video, answer), candidate 1 = (augmented video, the same answer)\n"
    "r_c = sum over the answer's tokens of (log p of the policy - log p of the reference)\n"
    "loss = -w log sigmoid(beta * (r_0 - r_1))\n"
    "augmented: of K videos with cosine(features, features of the video) >= tau the one of the largest D\n"
    "D = mean over the answer's tokens of JS(p(. | video), p(. | augmented)) / log 2; w = stop-gradient D",
    needs=frozenset({"reference"}),
    defaults={
        "language": ours(
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
    taxonomy=GROUNDED,
)

ROWS = (_MDPO, _CHIP, _POVID, _OPA, _VDPO, _VIDEO)

"""Rows of models of sound: Tango's training, Tango 2, CRPO; and what methods of pictures take there.

Numbers of training that a row leaves open are those of `PRESET`, which stand over what rows say of all media:
those are numbers of pictures.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from mmalign.methods.marks import code, ours, paper
from mmalign.methods.row import Default, Method, Taxonomy

__all__ = ["PRESET", "ROWS", "STRENGTHS", "with_strengths"]

_TANGO2 = "as Tango 2"

PRESET: Mapping[str, Default] = MappingProxyType(
    {
        "learning_rate": ours(
            2e-5, "LoRA; full fine-tuning takes Tango 2's 9.6e-7, whose updates a LoRA does not feel"
        ),
        "rank": ours(16, "of the attention's four projections"),
        "effective_batch": ours(32, _TANGO2),
        "epochs": ours(4, _TANGO2),
        "warmup_ratio": ours(0.1, "Tango 2 has 400 of about 2350 steps"),
        "schedule": ours("linear", _TANGO2),
        "optimizer": ours("adamw", _TANGO2),
        "weight_decay": ours(1e-2, _TANGO2),
        "prompt_dropout": ours(0.0, _TANGO2),
    }
)
"""Settings of a run of a model of sound where a method's row says nothing of sound."""

_BETA = {"beta": ours(2000.0, f"{_TANGO2}: errors are means over a latent, whatever it holds")}

_SAFE = {**_BETA, "mu": ours(0.9, "as sd15")}

STRENGTHS: Mapping[str, Mapping[str, Default]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("diffusion_dpo", "diffusion_cdpo", "diffusion_robust_dpo", "diffusion_ipo", "diffusion_hinge"),
            _BETA,
        ),
        **dict.fromkeys(("diffusion_lpo", "linear_dpo", "rankdpo", "flow_dpo"), _BETA),
        **dict.fromkeys(("diffusion_sdpo", "diffusion_dmpo"), _SAFE),
        "diffusion_kto": {**_BETA, "effective_batch": ours(64, "as many sounds as 32 pairs have")},
        "diffusion_simpo": {"beta": ours(500.0, "as images"), "gamma": ours(0.5, "as images")},
        "mapo": {"beta": ours(0.1, "as images"), "learning_rate": ours(1e-5, "as images, LoRA")},
        "diffusion_orpo": {"beta": ours(0.1, "as images"), "learning_rate": ours(1e-5, "as images, LoRA")},
        "diffusion_sft": {"learning_rate": ours(1e-5, "LoRA: nothing holds the model near its start")},
        "densedpo": {
            "beta": ours(2000.0, f"{_TANGO2}; the paper's 500 on whole errors of video is 1000 here"),
            "reduction": ours("mean", "over the decided frames, as the paper's appendix"),
        },
        "densedpo_per_segment": {"beta": ours(2000.0, _TANGO2)},
        "flow_grpo": {
            "learning_rate": ours(3e-4, "as images, LoRA"),
            "steps": ours(1000, "as images"),
            "samples": ours(8, "the group; 24 there, on many GPUs"),
            "sampling_eta": ours(1.0, "DDIM's eta; 0.7 suits the SDE of flows"),
            "guidance_scale": ours(3.0, "as Tango samples"),
        },
        "online_diffusion_dpo": {
            **_BETA,
            "sampling_steps": ours(50, "as CRPO samples; ancestral"),
            "sampling_eta": ours(1.0, "ancestral, as Tango samples"),
            "guidance_scale": ours(3.0, "as Tango samples"),
            "samples": ours(5, "as CRPO"),
            "steps": ours(1000, "samples are dear"),
        },
    }
)
"""What methods of pictures, or of any medium, take for sound."""


def with_strengths(rows: Iterable[Method]) -> Iterator[Method]:
    """The rows, those of `STRENGTHS` with their numbers for sound."""
    for row in rows:
        layer = STRENGTHS.get(row.name)
        yield row if layer is None else replace(row, defaults={**row.defaults, "audio": layer})


_ERROR = "error_c = mean over the event of (prediction_c - target)^2, score_c = -error_c / 2"
_TANGO_CODE = "declare-lab/tango 34ecd38"

_TANGO_SFT = Method(
    name="tango_sft",
    title="Text-to-Audio Generation using Instruction-Tuned LLM and Latent Diffusion Model",
    paper="2304.13731",
    year=2023,
    objective="sft",
    likelihood="elbo",
    reference="none",
    data="chosen",
    formula="error = w(t) * mean over the event of (prediction - target)^2, w(t) = min(SNR, gamma) / SNR\n"
    "loss = error / 2",
    defaults={
        "audio": {
            "learning_rate": code(3e-5, "full training"),
            "epochs": code(40),
            "effective_batch": code(32, "4 GPUs x 2 clips x 4 accumulated"),
            "warmup_ratio": code(0.0),
            "snr_gamma": code(5.0),
            "snr_form": code("epsilon", "the formula for noise, though the network predicts a velocity"),
        }
    },
    departures=(
        "the loss is half of the official one; Adam does not notice the factor",
        "likelihood.snr_form=exact is the weight of min-SNR for a velocity",
        "the text encoder does not drop out; audio.text_encoder_dropout=true is the released behaviour",
    ),
    parity=("tango_snr_sft",),
    official_code=_TANGO_CODE,
    status="parity",
    taxonomy=Taxonomy(framework="supervised", constraint="none"),
    on_errors="supervised",
)

_TANGO2_DPO = Method(
    name="tango2_dpo",
    title="Tango 2: Aligning Diffusion-based Text-to-Audio Generations through Direct Preference "
    "Optimization",
    paper="2404.09956",
    year=2024,
    objective="tango2_dpo",
    likelihood="elbo",
    formula=f"{_ERROR}\nu_c = score_c of the policy - score_c of the reference\n"
    "logit = beta * (u of chosen - u of rejected)\n"
    "loss = -log sigmoid(logit) + sft_weight * error of chosen",
    defaults={
        "audio": {
            "beta": paper(2000.0, "the README agrees; the script's default is 5000"),
            "sft_weight": paper(0.0, "1 is the mixture that two GPUs of the released trainer give"),
            "learning_rate": paper(9.6e-7, "full, in float32; LoRA takes 10 to 100 times as much"),
            "effective_batch": code(32, "2 GPUs x 4 pairs x 4 accumulated"),
            "epochs": paper(4, "after one of tango_sft on the winners"),
            "warmup_ratio": code(0.17, "400 of about 2350 optimiser steps on two GPUs"),
            "schedule": code("linear", "there it is sized for six times as many steps: see the departures"),
            "weight_decay": code(1e-2, "AdamW's own; the script's argument is not read"),
            "optimizer": code("adamw"),
            "prompt_dropout": code(0.0),
        }
    },
    departures=(
        "the supervised epoch is a run of its own (tango_sft), from whose model this one starts",
        "the rate falls to 0 at the last step (released: sized for far more steps, so that 0.82 is "
        "left at the end; train.schedule=constant is nearer to it)",
        "gradients are clipped at 1 (released: not at all; train.max_grad_norm=null)",
        "the text encoder does not drop out; audio.text_encoder_dropout=true is the released behaviour",
        "the last weights are kept (released: those of the lowest denoising error of validation clips, "
        "which says nothing of preferences and rises under DPO)",
    ),
    needs=frozenset({"reference"}),
    parity=("tango2_dpo", "tango_tiny_model"),
    official_code=_TANGO_CODE,
    status="parity",
)

_CRPO_DEFAULTS = {
    "beta": code(2000.0),
    "coefficient": code(1.0),
    "learning_rate": paper(1e-5, "the shipped file has 5e-4, the pretraining's"),
    "effective_batch": paper(48),
    "warmup_steps": paper(100),
    "adam_beta2": paper(0.95),
}
_CRPO_FORMULA = (
    f"{_ERROR}\nu_c = score_c of the policy - score_c of the reference\n"
    "logit = beta * (u of chosen - u of rejected)\nloss = -log sigmoid(logit) + coefficient * error of chosen"
)
_CRPO_TITLE = (
    "TangoFlux: Super Fast and Faithful Text to Audio Generation with Flow Matching and Clap-Ranked "
    "Preference Optimization"
)
_CRPO_CODE = "declare-lab/TangoFlux 164420f"
_WHOLE = (
    "the whole reference is frozen (released: its pooled text and duration come from the trained policy, "
    "so that it drifts)"
)

_CRPO = Method(
    name="crpo",
    title=_CRPO_TITLE,
    paper="2412.21037",
    year=2024,
    objective="crpo",
    likelihood="elbo",
    formula=_CRPO_FORMULA,
    defaults={"audio": {**_CRPO_DEFAULTS, "epochs": paper(8, "of one iteration")}},
    departures=(
        _WHOLE,
        "one iteration: `mmalign pairs make audio/configs/pairs/crpo.yaml` samples, ranks, pairs; the next "
        "starts from the last model (model.source) on pairs of its own",
        "every prompt has noise of its own (released: every call seeds anew, so that all prompts share five)",
        "a tie gives no pair (released: twice the same file), and scores are not rounded",
    ),
    needs=frozenset({"reference"}),
    parity=("tangoflux_crpo",),
    official_code=_CRPO_CODE,
    status="parity",
    fixes="displacement",
)

_ONLINE_CRPO = Method(
    name="online_crpo",
    title=_CRPO_TITLE,
    paper="2412.21037",
    year=2024,
    objective="crpo",
    likelihood="elbo",
    reference="synced",
    data="prompts",
    rollout="best_of_n",
    formula=f"samples per prompt from the current policy; chosen: the highest CLAP, rejected: the lowest\n"
    f"{_CRPO_FORMULA}",
    defaults={
        "audio": {
            **_CRPO_DEFAULTS,
            "samples": paper(5, "per prompt"),
            "sampling_steps": paper(50),
            "sampling_eta": ours(1.0, "ancestral on noise schedules; 0.7 suits the SDE of flows"),
            "guidance_scale": code(4.5),
            "sync_every": ours(250, "the paper's iteration has 20000 pairs x 8 epochs / 48 = 3333 steps"),
            "mixing": paper(1.0, "the reference is the previous iteration's policy"),
            "steps": ours(1250, "five iterations, as the paper's"),
        },
        "tango": {"guidance_scale": ours(3.0, "as Tango samples")},
    },
    departures=(
        _WHOLE,
        "pairs are made anew for every round of prompts (paper: five iterations of 20000, visited 8 times); "
        "its table has rounds on old pairs getting worse",
        "samples have noise of their own by (seed, prompt, visit); ties and failed scores make no pair",
    ),
    needs=frozenset({"reference"}),
    parity=("tangoflux_crpo",),
    official_code=_CRPO_CODE,
    status="parity",
    taxonomy=Taxonomy(framework="online", constraint="moving reference"),
    fixes="exploration",
)

ROWS: tuple[Method, ...] = (_TANGO_SFT, _TANGO2_DPO, _CRPO, _ONLINE_CRPO)

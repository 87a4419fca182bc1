"""What the rows of image methods share: marks of evidence, formulas, departures, borrowed recipes."""

from mmalign.methods.marks import code, ours, paper
from mmalign.methods.row import Default

__all__ = [
    "DIFFUSERS",
    "DIFFUSION_DPO",
    "EFFECTIVE_RATE",
    "FLOAT32",
    "JOINT_CROP",
    "LOG_RATIO",
    "MARGIN",
    "MEAN_ERROR",
    "TIES",
    "as_diffusion_dpo",
    "code",
    "ours",
    "paper",
]

DIFFUSION_DPO = "SalesforceAIResearch/DiffusionDPO 5233e75"
DIFFUSERS = "huggingface/diffusers 58eb52c"

MEAN_ERROR = "error_c = mean over the event of (prediction_c - target)^2, score_c = -error_c / 2"
LOG_RATIO = f"{MEAN_ERROR}\nlog_ratio_c = score_c of the policy - score_c of the reference"
MARGIN = f"{LOG_RATIO}\nmargin = log_ratio of chosen - log_ratio of rejected"

FLOAT32 = (
    "errors of policy and reference are float32 (official: the reference's are rounded to half precision, "
    "which at beta 5000 puts noise of up to 9.5 into the logit)"
)
JOINT_CROP = "flip and crop are drawn once per pair (official: for each image on its own)"
TIES = "ties follow data.tie_policy on every data set (official: dropped only if its name contains pickapic)"
EFFECTIVE_RATE = (
    "the learning rate is the effective one (official: a base rate that --scale_lr multiplies by the batch)"
)


def as_diffusion_dpo(
    strength: str, sd15: Default, sdxl: Default, **shared: Default
) -> dict[str, dict[str, Default]]:
    """The recipe of Diffusion-DPO, marked as ours, for methods without a published run on images.

    Args:
        strength: the hyperparameter that differs per family.
        sd15: its value for Stable Diffusion 1.x and 2.x.
        sdxl: its value for SDXL.
        shared: further settings of every family.
    """
    borrowed = "as Diffusion-DPO"
    every = {
        "effective_batch": ours(2048, borrowed),
        "learning_rate": ours(2.048e-5, borrowed),
        "steps": ours(2000, borrowed),
        "prompt_dropout": ours(0.2, borrowed),
    }
    return {
        "*": {**every, **shared},
        "sd15": {strength: sd15, "warmup_steps": ours(500, borrowed), "optimizer": ours("adamw", borrowed)},
        "sdxl": {
            strength: sdxl,
            "warmup_steps": ours(200, borrowed),
            "optimizer": ours("adafactor", borrowed),
        },
    }

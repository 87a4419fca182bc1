"""Rows of the image methods: an objective on timestep-sampled denoising errors, with numbers for each family.

Every row here scores a candidate by `-error / 2`, where error is the mean over channel, height and width of
the squared difference between the network's output and its target. Beta is per unit of that score, so the
official factor 1/2 of Diffusion-DPO is inside the score; where official code has no 1/2 its beta is doubled
here, and the note says so. Learning rates are effective ones: what the optimiser receives, with no hidden
scaling by batch or devices.
"""

from mmalign.methods.row import Default, Method, Taxonomy

__all__ = ["ROWS"]

_DIFFUSION_DPO = "SalesforceAIResearch/DiffusionDPO 5233e75"
_DIFFUSERS = "huggingface/diffusers 58eb52c"

_MEAN_ERROR = "error_c = mean over the event of (prediction_c - target)^2, score_c = -error_c / 2"
_LOG_RATIO = f"{_MEAN_ERROR}\nlog_ratio_c = score_c of the policy - score_c of the reference"
_MARGIN = f"{_LOG_RATIO}\nmargin = log_ratio of chosen - log_ratio of rejected"

_FLOAT32 = (
    "errors of policy and reference are float32 (official: the reference's are rounded to half precision, "
    "which at beta 5000 puts noise of up to 9.5 into the logit)"
)
_JOINT_CROP = "flip and crop are drawn once per pair (official: for each image on its own)"
_TIES = "ties follow data.tie_policy on every data set (official: dropped only if its name contains pickapic)"
_EFFECTIVE_RATE = (
    "the learning rate is the effective one (official: a base rate that --scale_lr multiplies by the batch)"
)


def _paper(value: float | int | str | bool, note: str = "") -> Default:
    return Default(value, "paper", note)


def _code(value: float | int | str | bool, note: str = "") -> Default:
    return Default(value, "code", note)


def _ours(value: float | int | str | bool, note: str = "") -> Default:
    return Default(value, "ours", note)


def _as_diffusion_dpo(
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
        "effective_batch": _ours(2048, borrowed),
        "learning_rate": _ours(2.048e-5, borrowed),
        "steps": _ours(2000, borrowed),
        "prompt_dropout": _ours(0.2, borrowed),
    }
    return {
        "*": {**every, **shared},
        "sd15": {strength: sd15, "warmup_steps": _ours(500, borrowed), "optimizer": _ours("adamw", borrowed)},
        "sdxl": {
            strength: sdxl,
            "warmup_steps": _ours(200, borrowed),
            "optimizer": _ours("adafactor", borrowed),
        },
    }


_DPO = Method(
    name="diffusion_dpo",
    title="Diffusion Model Alignment Using Direct Preference Optimization",
    paper="2311.12908",
    year=2023,
    objective="dpo",
    likelihood="elbo",
    formula=f"{_MARGIN}\nlogit = beta * margin\nloss = -log sigmoid(logit)",
    defaults={
        "*": {
            "prompt_dropout": _code(0.2, "the launcher of SDXL-Turbo has 0"),
            "weight_decay": _code(1e-2),
            "rank": _code(8, "LoRA, of the diffusers script: learning rate 1e-5, batch 16"),
            "steps": _code(2000),
            "effective_batch": _code(2048, "16 GPUs x 1 pair x 128 accumulated"),
            "learning_rate": _code(
                2.048e-5, "1e-8 times batch 2048 by --scale_lr; the paper states 2000 / beta * 2.048e-8"
            ),
        },
        "sd15": {
            "beta": _paper(2000, "main result; the launcher has 5000; 2000 to 5000 work"),
            "warmup_steps": _code(500, "25 %, also in the paper"),
            "optimizer": _code("adamw"),
            "max_grad_norm": _code(1.0),
            "resolution": _code(512),
        },
        "sdxl": {
            "beta": _paper(5000, "2000 to 5000 work; the launcher agrees"),
            "warmup_steps": _code(200),
            "optimizer": _code("adafactor", "no relative step, no parameter scaling, update clipped at 1.0"),
            "resolution": _code(1024, "Turbo: 512"),
        },
    },
    departures=(_FLOAT32, _JOINT_CROP, _TIES, _EFFECTIVE_RATE),
    needs=frozenset({"reference"}),
    parity=("diffusion_dpo", "diffusion_dpo_diffusers"),
    official_code=_DIFFUSION_DPO,
    status="parity",
)

_CDPO = Method(
    name="diffusion_cdpo",
    title="A note on DPO with noisy preferences and relationship to IPO",
    paper="",
    year=2023,
    link="https://ericmitchell.ai/cdpo.pdf",
    objective="cdpo",
    likelihood="elbo",
    formula=f"{_MARGIN}\nlogit = beta * margin, s = label_smoothing\n"
    "loss = -(1 - s) * log sigmoid(logit) - s * log sigmoid(-logit)",
    defaults=_as_diffusion_dpo(
        "beta",
        _ours(2000, "as Diffusion-DPO"),
        _ours(5000, "as Diffusion-DPO"),
        label_smoothing=_ours(0.1, "the share of labels believed to be flipped"),
    ),
    departures=("the note is about text; on images the score is the denoising error",),
    needs=frozenset({"reference"}),
    parity=("text_cdpo_label_smoothing",),
    official_code="eric-mitchell/direct-preference-optimization f8b8c0f",
    status="parity",
)

_ROBUST = Method(
    name="diffusion_robust_dpo",
    title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    paper="2403.00409",
    year=2024,
    objective="robust_dpo",
    likelihood="elbo",
    formula=f"{_MARGIN}\nlogit = beta * margin, s = label_smoothing\n"
    "loss = (-(1 - s) * log sigmoid(logit) + s * log sigmoid(-logit)) / (1 - 2 s); unbounded below",
    defaults=_as_diffusion_dpo(
        "beta",
        _ours(2000, "as Diffusion-DPO"),
        _ours(5000, "as Diffusion-DPO"),
        label_smoothing=_ours(0.1, "TRL's default for text"),
    ),
    departures=("the paper is about text; on images the score is the denoising error",),
    needs=frozenset({"reference"}),
    parity=("text_rdpo_robust",),
    official_code="trl 1.16.0",
    status="parity",
)

_IPO = Method(
    name="diffusion_ipo",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    paper="2310.12036",
    year=2023,
    objective="diffusion_ipo",
    likelihood="elbo",
    formula=f"{_MARGIN}\nlogit = beta * margin\nloss = (logit - 1/2)^2",
    defaults=_as_diffusion_dpo(
        "beta",
        _ours(2000, "as Diffusion-DPO"),
        _ours(5000, "as Diffusion-DPO"),
    ),
    departures=(
        "the official branch reads an argument that does not exist and crashes; its target has text's scale, "
        "ours has the error's",
        "the loss is times beta^2 (official: unscaled, about 1e-8, which vanishes in Adam's epsilon)",
    ),
    needs=frozenset({"reference"}),
    parity=("diffusion_dpo_diffusers",),
    official_code=_DIFFUSERS,
    status="parity",
)

_HINGE = Method(
    name="diffusion_hinge",
    title="Statistical Rejection Sampling Improves Preference Optimization",
    paper="2309.06657",
    year=2023,
    objective="hinge",
    likelihood="elbo",
    formula=f"{_MARGIN}\nlogit = beta * margin\nloss = max(0, 1 - logit)",
    defaults=_as_diffusion_dpo(
        "beta",
        _code(5000, "2500 in the diffusers script, which has no factor 1/2"),
        _ours(5000, "as sd15; the SDXL script has no hinge"),
    ),
    departures=("the factor 1/2 is in the score, so beta is twice the script's",),
    needs=frozenset({"reference"}),
    parity=("diffusion_dpo_diffusers",),
    official_code=_DIFFUSERS,
    status="parity",
)

_SIMPO = Method(
    name="diffusion_simpo",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    paper="2405.14734",
    year=2024,
    objective="simpo",
    likelihood="elbo",
    reference="none",
    formula=f"{_MEAN_ERROR}\nlogit = beta * (score of chosen - score of rejected) - gamma\n"
    "loss = -log sigmoid(logit)",
    defaults=_as_diffusion_dpo(
        "beta",
        _ours(500, "the slope of MaPO's score at small errors: 1000 * 0.5, in the unit of our score"),
        _ours(500, "the slope of MaPO's score at small errors: 1000 * 0.5, in the unit of our score"),
        gamma=_ours(0.5, "target margin in units of the logit"),
    ),
    departures=(
        "the paper is about text; on images two pictures differ in error for reasons that are no preference, "
        "so the logit starts spread around 0 instead of at 0",
    ),
    parity=("text_simpo",),
    official_code="princeton-nlp/SimPO 1b3e8f3",
    status="parity",
    taxonomy=Taxonomy(constraint="none"),
)

_MAPO = Method(
    name="mapo",
    title="Margin-aware Preference Optimization for Aligning Diffusion Models without Reference",
    paper="2406.06424",
    year=2024,
    objective="mapo",
    likelihood="elbo",
    reference="none",
    formula="error_c = mean over the event of (prediction_c - target)^2\n"
    "s(error) = kappa * error / (exp(kappa * error) - 1)\n"
    "loss = error of chosen - beta * log sigmoid(1000 * (s(error of chosen) - s(error of rejected)))",
    defaults={
        "*": {
            "beta": _code(0.1),
            "kappa": _code(0.5, "snr_value there"),
            "scale": _code(1000.0, "the number of training timesteps"),
            "prompt_dropout": _code(0.0),
            "schedule": _code("constant"),
            "warmup_steps": _code(0),
            "rank": _code(8, "of the LoRA example"),
        },
        "sd15": {
            "effective_batch": _ours(16, "as SDXL; there is no official SD 1.5 run"),
            "learning_rate": _ours(1e-5, "as SDXL; there is no official SD 1.5 run"),
            "steps": _ours(2000, "as SDXL; there is no official SD 1.5 run"),
            "optimizer": _ours("adamw", "the weights are small enough"),
        },
        "sdxl": {
            "effective_batch": _code(16, "8 pairs x 2 accumulated on one GPU"),
            "learning_rate": _code(1e-5, "the LoRA example too, rank 8"),
            "steps": _code(2000),
            "optimizer": _code("adamw_8bit"),
            "resolution": _code(1024),
        },
    },
    departures=("s is computed by expm1 and is 1 at error 0 (official: 0/0 there)",),
    parity=("mapo",),
    official_code="mapo-t2i/mapo 374b3d3",
    status="parity",
    taxonomy=Taxonomy(constraint="none"),
)

_ORPO = Method(
    name="diffusion_orpo",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    paper="2403.07691",
    year=2024,
    objective="diffusion_orpo",
    likelihood="elbo",
    reference="none",
    formula="error_c = mean over the event of (prediction_c - target)^2\n"
    "loss = error of chosen - beta * log sigmoid(scale * (error of rejected - error of chosen))",
    defaults={
        "*": {"beta": _code(0.1), "scale": _ours(1000.0, "as MaPO; the official code has 1")},
        "sd15": {
            "effective_batch": _ours(16, "as MaPO"),
            "learning_rate": _ours(1e-5, "as MaPO"),
            "steps": _ours(2000, "as MaPO"),
        },
        "sdxl": {
            "effective_batch": _ours(16, "as MaPO"),
            "learning_rate": _ours(1e-5, "as MaPO"),
            "steps": _ours(2000, "as MaPO"),
        },
    },
    departures=(
        "the sign of the ratio term is corrected (official: minimising it raises the chosen error above the "
        "rejected); the official form is diffusion_orpo_official",
        "the ratio term has a scale, as differences of 1e-3 leave the unscaled one at log 2",
    ),
    parity=("diffusion_orpo",),
    official_code=_DIFFUSERS,
    status="parity",
    taxonomy=Taxonomy(constraint="none"),
)

_KTO = Method(
    name="diffusion_kto",
    title="Aligning Diffusion Models by Optimizing Human Utility",
    paper="2404.04465",
    year=2024,
    objective="kto",
    likelihood="elbo",
    data="unpaired",
    formula=f"{_LOG_RATIO}\nzero_point = max(0, mean of log_ratio over the batch), no gradient\n"
    "z = +-beta * (log_ratio - zero_point), + for desirable\nloss = weight * (1 - sigmoid(z))",
    defaults={
        "*": {
            "beta": _code(2000, "1000 in the code, which has no factor 1/2"),
            "prompt_dropout": _code(0.2),
            "learning_rate": _code(1e-7),
            "warmup_steps": _code(200),
            "steps": _code(20000),
            "effective_batch": _code(8, "4 GPUs x 2"),
        },
        "sd15": {"optimizer": _code("adamw_8bit"), "resolution": _code(512)},
        "sdxl": {
            "optimizer": _ours("adafactor", "there is no official SDXL run"),
            "resolution": _ours(1024, "there is no official SDXL run"),
        },
    },
    departures=(
        "the reference is the same network with adapters off, or a frozen copy (official: weights swapped in "
        "place, which casts the trained network to half precision)",
    ),
    couples_rows=True,
    needs=frozenset({"reference"}),
    parity=("diffusion_kto",),
    official_code="jacklishufan/diffusion-kto 226bbd0",
    status="parity",
    taxonomy=Taxonomy(data="pointwise"),
)

_SFT = Method(
    name="diffusion_sft",
    title="Supervised fine-tuning on the chosen images",
    paper="2311.12908",
    year=2023,
    objective="sft",
    likelihood="elbo",
    reference="none",
    formula=f"{_MEAN_ERROR}\nloss = -score of chosen",
    defaults={
        "*": {
            "effective_batch": _ours(2048, "as Diffusion-DPO"),
            "prompt_dropout": _ours(0.2, "as Diffusion-DPO"),
        },
        "sd15": {
            "learning_rate": _ours(1e-5, "half of Diffusion-DPO's: nothing holds the model near its start"),
            "steps": _ours(2000, "as Diffusion-DPO"),
        },
        "sdxl": {
            "learning_rate": _ours(1e-6, "low: the paper finds that it hurts SDXL on Pick-a-Pic at any rate"),
            "steps": _ours(500, "few: the paper finds that it hurts SDXL on Pick-a-Pic at any rate"),
        },
    },
    departures=("the loss is half of the usual denoising error; Adam does not notice the factor",),
    parity=("text_sft_chosen",),
    official_code=_DIFFUSION_DPO,
    status="parity",
    taxonomy=Taxonomy(framework="supervised", constraint="none"),
)

ROWS: tuple[Method, ...] = (_DPO, _CDPO, _ROBUST, _IPO, _HINGE, _SIMPO, _MAPO, _ORPO, _KTO, _SFT)

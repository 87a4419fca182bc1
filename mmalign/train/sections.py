"""The sections of a run configuration, as pydantic models: names, ranges, defaults, one line of help each."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mmalign.data.config import DataConfig

__all__ = [
    "NO_BITS",
    "AdapterConfig",
    "GuardConfig",
    "ImageConfig",
    "InversionConfig",
    "LikelihoodConfig",
    "LogConfig",
    "MediaConfig",
    "ModelConfig",
    "OneStepConfig",
    "ReferenceConfig",
    "RolloutConfig",
    "RunConfig",
    "SafeguardConfig",
    "SamplesConfig",
    "Section",
    "TrainConfig",
]


class Section(BaseModel):
    """A part of the run configuration: unknown keys are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


NO_BITS = frozenset({"attention", "gradient_checkpointing", "offload_encoders", "compile", "channels_last"})
"""Settings of a model that decide how it is computed, and nothing of what but rounding."""


class ModelConfig(Section):
    """Which network, and how it is held in memory."""

    family: str = Field(description="family name: `mmalign families` lists them")
    source: str = Field(description="hub id, diffusers folder, or a single .safetensors file")
    revision: str | None = Field(None, description="hub revision to pin")
    variant: str | None = Field(None, description="file variant of the hub repository, for example fp16")
    config_source: str | None = Field(
        None, description="diffusers folder or hub id whose configs describe a single file"
    )
    vae: str | None = Field(
        None, description="replacement VAE: hub id or folder (SDXL in fp16 needs the fp16 fix)"
    )
    motion_adapter: str | None = Field(
        None,
        description="AnimateDiff: motion modules for a model of pictures: hub id, folder or safetensors file",
    )
    told_fps: float | None = Field(
        None,
        gt=0,
        description="VideoCrafter: frames per second that the network is told; default 28, as officially",
    )
    text_length: int | None = Field(
        None,
        ge=1,
        le=512,
        description="tokens of the T5 encoder (SD3, FLUX, PixArt); default: the pipeline's",
    )
    guidance: float | None = Field(
        None,
        ge=0,
        description="FLUX dev, HunyuanVideo: guidance the network is told while training; default 3.5, 6",
    )
    attention: Literal["auto", "sdpa", "xformers", "flash", "flex"] = Field(
        "auto",
        description="attention backend, verified; auto: the fastest that gives the numbers of float32 on "
        "this device; flex: packed rows of language models, on CUDA",
    )
    quantization: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="frozen linear layers in 4 or 8 bits, under LoRA; nf4 by bitsandbytes"
    )
    gradient_checkpointing: bool | Literal["selective"] = Field(
        False,
        description="recompute activations in the backward pass; selective: only what costs no products, "
        "for no FLOPs and a part of the memory",
    )
    compile: Literal["none", "blocks"] = Field(
        "none",
        description="blocks: compile what the network repeats (regional compilation); it starts slower",
    )
    channels_last: bool = Field(
        False, description="pictures: convolutions of UNet and VAE on memory with channels innermost"
    )
    offload_encoders: bool = Field(False, description="keep VAE and text encoders on the CPU between uses")


class MediaConfig(Section):
    """What the sections of all media have: `image`, `audio`."""

    prompt_dropout: float = Field(0.0, ge=0, le=1, description="share of rows trained with the empty prompt")
    cache: str | None = Field(
        None, description="folder made by `mmalign data cache`; no encoders are needed then"
    )


class ImageConfig(MediaConfig):
    """How images become latents."""

    resolution: int = Field(ge=16, description="pixels; shorter side after resizing, and the crop")
    crop: Literal["center", "random"] = "center"
    flip: bool = Field(
        True, description="horizontal flip with probability 0.5, the same for both images of a pair"
    )
    micro_conditioning: Literal["constant", "true"] = Field(
        "constant",
        description="SDXL size conditioning: constant (matches inference) or the images' true sizes",
    )


class InversionConfig(Section):
    """How clean samples are inverted, for likelihoods on the model's own trajectory."""

    method: Literal["ddim", "renoise"] | None = Field(None, description="default: the row, else ddim")
    num_steps: int | None = Field(
        None, ge=1, description="over all timesteps; default: the row, else 10, renoise 5"
    )
    eta: float | None = Field(None, ge=0, description="noise per step; default: the row, else 0.1, renoise 0")
    landing: Literal["exact", "official_0_20", "official_current"] = Field(
        "exact",
        description="exact: the last step ends at the drawn timestep; the others repeat released code",
    )


class SafeguardConfig(Section):
    """Diffusion-SDPO: the rejected sample pushes only as hard as the chosen one can bear."""

    mu: float | None = Field(
        None, ge=0, le=1, description="share of the chosen sample's progress that is kept; null: no safeguard"
    )
    scope: Literal["pair", "batch"] = Field(
        "pair", description="batch: one factor per micro-batch, as released"
    )
    epsilon: float = Field(0.0, ge=0, description="added to the inner product; 1e-9 released")


class OneStepConfig(Section):
    """A one-step generator that is rewarded and held to a teacher by an online score model."""

    timestep: int | float | None = Field(
        None, ge=0, description="at which the generator is given noise; default: the row, else the noisiest"
    )
    teacher: str | None = Field(
        None,
        description="hub id, folder or file of the multi-step model it stays near; default: model.source",
    )
    teacher_guidance: float | None = Field(
        None,
        ge=1,
        description="scale of the teacher's guidance, the implicit reward; default: the row, else 1",
    )
    reward_weight: float | None = Field(
        None, ge=0, description="of the reward against the distance; 0 distils; default: the row, else 1"
    )
    distance: Literal["pseudo_huber", "squared", "kl"] | None = Field(
        None, description="of the two scores; kl is Diff-Instruct's; default: the row, else pseudo_huber"
    )
    huber_constant: float | None = Field(
        None, gt=0, description="c of pseudo_huber; default 0.00054 times the root of the elements"
    )
    space: Literal["epsilon", "v_prediction", "sample", "flow"] | None = Field(
        None,
        description="of the compared answers; weighs noise levels; default: the row, else sample",
    )
    score_steps: int | None = Field(
        None, ge=1, description="updates of the score model per micro-batch; default: the row, else 1"
    )
    score_adapter: Literal["lora", "none"] = Field(
        "lora", description="the score model: LoRA on the teacher, or a third network"
    )
    score_rank: int | None = Field(None, ge=1, description="of that LoRA; default: adapter.rank")
    score_learning_rate: float | None = Field(None, gt=0, description="default: train.learning_rate")


class RolloutConfig(Section):
    """How a method that learns from its own samples makes them; offline methods have no such section."""

    num_steps: int | None = Field(None, ge=1, description="sampler steps; default: the row, else 20")
    guidance_scale: float | None = Field(None, ge=1, description="of sampling; default: the row, else 5")
    eta: float | None = Field(
        None, ge=0, description="noise on the way: DDIM's eta, or a of the flow SDE; default: the row, else 1"
    )
    spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None,
        description="where the timesteps of noise schedules lie; trailing starts at the noisiest one however "
        "few the steps; default: the model's scheduler",
    )
    samples: int | None = Field(None, ge=1, description="samples per prompt; default: the row, else 4")
    prompts: int = Field(4, ge=1, description="prompts that are sampled together, per device")
    reward: str | None = Field(
        None,
        description="who scores the samples: a name of `mmalign rewards`, an ensemble file, module:function",
    )
    reward_weights: str | None = Field(None, description="folder of the reward's files; default: the hub")
    reward_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    reward_options: dict[str, Any] = Field(default_factory=dict, description="as its card names them")
    threshold: float | None = Field(
        None, ge=0, lt=1, description="smallest difference of preference probabilities that makes a pair"
    )
    divert_start: int | None = Field(None, ge=0, description="stepwise: sampler step at which pools begin")
    inner_steps: int | None = Field(
        None, ge=0, description="stepwise: ordinary steps of every candidate before it is scored"
    )
    refresh_every: int | None = Field(
        None, ge=1, description="optimiser steps between two snapshots of the policy that samples"
    )
    capacity: int | None = Field(None, ge=1, description="trajectories or checkpoints that are kept")
    gradient_steps: int | None = Field(
        None, ge=1, description="backpropagation: sampler steps, from the end, that carry gradients"
    )
    train_share: float | None = Field(
        None, gt=0, le=1, description="group: share of a trajectory's steps that is trained on"
    )
    one_step: OneStepConfig = Field(default_factory=OneStepConfig)


class LikelihoodConfig(Section):
    """How the timestep-sampled bound is drawn."""

    kind: Literal["auto", "elbo", "inversion", "on_policy", "transition", "reward", "tokens"] = Field(
        "auto", description="auto: the method's own; inversion noises along the policy's own trajectory"
    )
    inversion: InversionConfig = Field(default_factory=InversionConfig)
    timesteps: Literal["uniform", "logit_normal", "listed"] = "uniform"
    low: int | float = Field(0, ge=0, description="uniform: first timestep (flow models: lowest sigma)")
    high: int | float | None = Field(
        None, description="uniform: one past the last timestep (flow models: highest sigma); default all"
    )
    values: tuple[int | float, ...] = Field(
        (), description="listed: the timesteps, for example those of a Turbo model"
    )
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    stratified: bool = Field(False, description="spread the timesteps of one optimiser step evenly")
    draws: int = Field(
        1,
        ge=1,
        description="draws of (timestep, noise) per row and visit; the loss is their mean, a step costs as "
        "many times more, and a micro-batch holds as many times more rows",
    )
    antithetic: bool = Field(
        False, description="draws come in pairs with one timestep and noises of opposite sign"
    )
    share_noise: bool | None = Field(
        None, description="the candidates of a prompt share the noise; default: yes, with inversion no"
    )
    share_timestep: bool = Field(True, description="the candidates of a prompt share the timestep")
    error_space: Literal["native", "epsilon", "v_prediction", "sample", "flow"] = "native"
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the elements of one sample; decides beta's unit"
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="min-SNR: noise levels with a higher signal-to-noise ratio are weighed down; 5 in the "
        "paper; default: the row, else all levels alike",
    )
    snr_form: Literal["exact", "epsilon"] | None = Field(
        None,
        description="min-SNR: exact, in the network's own space; epsilon, as if it predicted noise (Tango's "
        "released trainer); default: the row, else exact",
    )

    @model_validator(mode="after")
    def _in_pairs(self) -> "LikelihoodConfig":
        if self.antithetic and self.draws % 2:
            message = (
                f"antithetic true with draws {self.draws}: expected an even number, for every draw comes "
                "with its mirror image; set draws=2, or antithetic=false"
            )
            raise ValueError(message)
        return self


class ReferenceConfig(Section):
    """What the policy is compared with."""

    kind: Literal["auto", "adapters_off", "frozen", "ema", "synced", "stored", "none"] = Field(
        "auto",
        description="auto: the method's own if it moves, else adapters_off with LoRA, frozen copy with full "
        "fine-tuning, none if not needed",
    )
    offload: bool = Field(False, description="frozen: keep the copy on the CPU between uses")
    decay: float = Field(0.999, ge=0, le=1, description="ema: decay per optimiser step")
    sync_every: int | None = Field(
        None, ge=1, description="synced: optimiser steps between two moves; default: the row, else 512"
    )
    mixing: float | None = Field(
        None,
        ge=0,
        le=1,
        description="synced: share of the policy in the new reference (1: all); default: the row, else 0.6",
    )
    draws_per_row: int = Field(
        4, ge=1, description="stored: size of the fixed bank of (timestep, noise) per row"
    )


class AdapterConfig(Section):
    """LoRA through peft, or none for full fine-tuning."""

    kind: Literal["lora", "none"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0, description="default: equal to rank")
    targets: tuple[str, ...] | str | None = Field(
        None, description="module name endings, or one regular expression; default: the family's"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="0 keeps the policy equal to the reference at the start"
    )
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["gaussian", "default"] = "gaussian"


class TrainConfig(Section):
    """The optimisation."""

    output: str = Field(description="run folder: checkpoints, metrics.jsonl, samples, resolved config")
    seed: int = 0
    steps: int | None = Field(None, ge=1, description="optimiser steps; default: the method's row")
    epochs: float | None = Field(
        None, gt=0, description="passes over the rows, instead of steps; default: the method's row"
    )
    batch_size: int = Field(1, ge=1, description="prompts (pairs) per device and micro-step")
    accumulation: int = Field(1, ge=1, description="micro-steps per optimiser step")
    split_backward: bool = Field(
        False,
        description="exact gradients from one candidate at a time: half of a pair's activations, for one "
        "more forward pass of all candidates but one",
    )
    split_size: int | None = Field(
        None,
        ge=1,
        description="split_backward: candidates of a part, over all prompts of a micro-batch; default: "
        "batch_size, one of every prompt. Smaller parts save more, and statistics of the batch stay whole",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="effective: used as it stands, never multiplied by batch or devices; default: the row",
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] | None = None
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int | None = Field(None, ge=0, description="optimiser steps; default: the row, else 0")
    warmup_ratio: float | None = Field(
        None, ge=0, le=1, description="share of the steps, instead of warmup_steps; default: the row"
    )
    max_grad_norm: float | None = Field(1.0, gt=0, description="null switches clipping off")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float | None = Field(None, ge=0, lt=1, description="keep an average of the trained weights")
    max_nonfinite: int = Field(10, ge=1, description="dropped updates in a row that end the run")
    checkpoint_every: int = Field(200, ge=1, description="optimiser steps")
    keep_checkpoints: int = Field(2, ge=1)
    resume: str = Field(
        "auto", description="auto: continue the run in `output` if there is one; none; or a checkpoint"
    )
    num_workers: int | None = Field(
        None, ge=0, description="loader processes; default min(4, cores per device)"
    )
    allow_tf32: bool = Field(True, description="TF32 matrix products on CUDA for float32 parts")
    device: Literal["auto", "cpu"] = "auto"

    @model_validator(mode="after")
    def _one_of_each(self) -> "TrainConfig":
        for steps, share in (("steps", "epochs"), ("warmup_steps", "warmup_ratio")):
            if getattr(self, steps) is not None and getattr(self, share) is not None:
                clear = f"train.{share}=null on the command line clears one"
                message = f"set {steps} or {share}, not both; {clear}"
                raise ValueError(message)
        if self.split_size is not None and not self.split_backward:
            message = "split_size is the size of the parts of split_backward, which is off"
            raise ValueError(message)
        return self

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        # YAML 1.1 reads a bare `no` as False.
        return "no" if value is False else value


class LogConfig(Section):
    """What is written while training. `metrics.jsonl` is always written."""

    every: int = Field(10, ge=1, description="optimiser steps between records")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    project: str = "mmalign"
    run_name: str | None = None


class GuardConfig(Section):
    """What happens when the chosen samples' error stays above the reference's: the run is diverging.

    Of language models, the negative log-likelihood of chosen answers.
    """

    action: Literal["warn", "rollback", "stop", "off"] = Field(
        "warn",
        description="warn: say it, with the remedy; rollback: back to the last good checkpoint with a lower "
        "learning rate and other rows, stop when that has not helped; stop: save and end the run",
    )
    threshold: float = Field(
        0.05, gt=0, description="relative error of the chosen samples above the reference's that is too much"
    )
    patience: int = Field(
        5, ge=1, description="records (of log.every steps) whose median must be above the threshold"
    )
    max_rollbacks: int = Field(2, ge=1, description="rollback: the run stops at the next divergence")
    learning_rate_factor: float = Field(
        0.5, gt=0, lt=1, description="rollback: the learning rate is multiplied by it each time"
    )


class SamplesConfig(Section):
    """Grids on fixed prompts and noise while training."""

    prompts: tuple[str, ...] = ()
    every: int | None = Field(None, ge=1, description="optimiser steps; default: only at the end")
    seed: int = 0
    num_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(5.0, ge=1)


class RunConfig(Section):
    """One training run.

    Attributes:
        media_name: of the section that says how media become latents.
    """

    media_name: ClassVar[str] = "image"

    method: str
    model: ModelConfig
    image: ImageConfig
    data: DataConfig
    objective: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="arguments of the method's objective, for example beta"
    )
    likelihood: LikelihoodConfig = Field(default_factory=LikelihoodConfig)
    safeguard: SafeguardConfig = Field(default_factory=SafeguardConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    train: TrainConfig
    log: LogConfig = Field(default_factory=LogConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)

    @property
    def media(self) -> MediaConfig:
        """The section that says how media become latents, whatever they are."""
        section: MediaConfig = getattr(self, self.media_name)
        return section

    @field_validator("objective")
    @classmethod
    def _no_yaml_surprises(cls, value: dict[str, Any]) -> dict[str, Any]:
        # PyYAML reads 1e-5 as text; a number is meant.
        return {name: _number_if_possible(item) for name, item in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.reference.kind == "adapters_off" and self.adapter.kind == "none":
            message = (
                "reference.kind adapters_off needs adapter.kind lora (there is no adapter to switch off); "
                "use reference.kind frozen, stored or auto"
            )
            raise ValueError(message)
        if self.model.quantization is not None and self.adapter.kind == "none":
            message = (
                f"model.quantization {self.model.quantization} needs adapter.kind lora: weights of so few "
                "bits are frozen; leave model.quantization out to train the whole network"
            )
            raise ValueError(message)
        if self.likelihood.timesteps == "listed" and not self.likelihood.values:
            message = "likelihood.timesteps listed needs likelihood.values, for example [249, 499, 749, 999]"
            raise ValueError(message)
        if self.reference.kind in ("stored", "ema", "synced") and self.adapter.dropout > 0:
            # Stored errors have no dropout in them; an average would be evaluated under it.
            message = f"reference.kind {self.reference.kind} needs adapter.dropout 0"
            raise ValueError(message)
        if self.reference.kind == "stored" and self.likelihood.stratified:
            message = (
                "reference.kind stored needs likelihood.stratified false: a stratified timestep depends on "
                "the place in the step, a stored one must not"
            )
            raise ValueError(message)
        return self


def _number_if_possible(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value

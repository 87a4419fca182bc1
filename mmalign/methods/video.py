"""Rows of models of video: Flow-RWR, VideoDPO, StructuralDPO, GAPO and others; what other methods take there.

Numbers of training that a row leaves open are those of `PRESET`, which stand over what rows say of all media:
those are numbers of pictures. The strength depends on what a network predicts: 5000 is published where that
is noise or v (AnimateDiff, CogVideoX, VideoCrafter), 1000 for flows (Wan, LTX-Video, HunyuanVideo).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from mmalign.methods.marks import code, ours, paper
from mmalign.methods.row import Default, Method, Taxonomy

__all__ = ["FLOWS", "PRESET", "ROWS", "STRENGTHS", "with_strengths"]

FLOWS = ("wan", "ltx", "hunyuan_video")
"""Families that predict the velocity of a rectified flow."""

PRESET: Mapping[str, Default] = MappingProxyType(
    {
        "learning_rate": paper(1e-5, "DenseDPO, LoRA of rank 128"),
        "rank": paper(128, "DenseDPO"),
        "effective_batch": ours(32, "256 on 64 GPUs in DenseDPO, 8 on 4 in VideoDPO"),
        "steps": paper(1000, "DenseDPO"),
        "warmup_ratio": paper(0.25, "DenseDPO: 250 of 1000 steps"),
        "schedule": ours("constant", "after the warm-up; DenseDPO does not say"),
        "optimizer": paper("adamw", "DenseDPO"),
        "weight_decay": ours(1e-2, "AdamW's own"),
        "max_grad_norm": paper(1.0, "DenseDPO"),
        "prompt_dropout": ours(0.0, "as Flow-DPO"),
    }
)
"""Settings of a run of a model of video where a method's row says nothing of video."""

_Layers = dict[str, dict[str, Default]]

_NOISE = "VideoDPO and GAPO, which predict noise or v"
_VELOCITY = "DenseDPO's 500 on whole errors, of a flow"


def _beta(mark_noise: Default | None = None, **more: Default) -> _Layers:
    """5000 where noise or v is predicted, 1000 on flows; more settings that hold for both."""
    noise = mark_noise or ours(5000.0, _NOISE)
    flows = {family: {"beta": ours(1000.0, _VELOCITY)} for family in FLOWS}
    return {"video": {"beta": noise, **more}, **flows}


_SAFE = {"mu": ours(0.9, "as images")}
_GENTLE = {"learning_rate": ours(5e-6, "LoRA: nothing holds the model near its start")}

STRENGTHS: Mapping[str, Mapping[str, Mapping[str, Default]]] = MappingProxyType(
    {
        **{
            name: _beta()
            for name in (
                "diffusion_dpo",
                "diffusion_cdpo",
                "diffusion_robust_dpo",
                "diffusion_ipo",
                "diffusion_hinge",
                "diffusion_lpo",
                "linear_dpo",
                "rankdpo",
            )
        },
        "flow_dpo": {
            "video": {
                "beta": ours(
                    1000.0, f"{_VELOCITY}; the paper's own is not known, its code for images has 100"
                ),
                "schedule": paper("constant", "one_minus_t_squared gains quality and loses text alignment"),
            }
        },
        **{name: _beta(**_SAFE) for name in ("diffusion_sdpo", "diffusion_dmpo")},
        "diffusion_kto": _beta(effective_batch=ours(64, "as many clips as 32 pairs have")),
        "diffusion_simpo": {
            "video": {"beta": ours(500.0, "as images"), "gamma": ours(0.5, "as images"), **_GENTLE}
        },
        "mapo": {"video": {"beta": ours(0.1, "as images"), **_GENTLE}},
        "diffusion_orpo": {"video": {"beta": ours(0.1, "as images"), **_GENTLE}},
        "diffusion_sft": {"video": dict(_GENTLE)},
        "densedpo": {
            "video": {
                "beta": paper(1000.0, "500 on whole errors"),
                "reduction": paper("mean", "its appendix: over the decided latent frames"),
                "share_noise": paper(False, "noise of its own for each side: pairs that share their layout"),
                "effective_batch": paper(256),
            }
        },
        "densedpo_per_segment": {
            "video": {
                "beta": paper(1000.0, "500 on whole errors"),
                "share_noise": paper(False, "as densedpo"),
            }
        },
        **{
            name: _beta(
                samples=ours(4, "clips are dear"),
                sampling_steps=ours(25, "clips are dear"),
                guidance_scale=ours(5.0, "as Wan samples"),
                sampling_eta=ours(0.0, "deterministic, as at inference"),
                steps=ours(500, "samples are dear"),
            )
            for name in ("online_diffusion_dpo", "seppo", "sspo")
        },
        "flow_grpo": {
            "video": {
                "learning_rate": ours(1e-4, "LoRA; a third of the images'"),
                "steps": ours(500, "samples are dear"),
                "samples": ours(8, "the group; 24 there, on many GPUs"),
                "guidance_scale": ours(5.0, "as Wan samples"),
            }
        },
    }
)
"""What methods of pictures, or of any medium, take for video, by family or for all of them (`video`)."""


def with_strengths(rows: Iterable[Method]) -> Iterator[Method]:
    """The rows, those of `STRENGTHS` with their numbers for video."""
    for row in rows:
        layers = STRENGTHS.get(row.name, {})
        merged = {name: {**row.defaults.get(name, {}), **layer} for name, layer in layers.items()}
        yield replace(row, defaults={**row.defaults, **merged}) if merged else row


_ERROR = "error_c = mean over the event of (prediction_c - target)^2, score_c = -error_c / 2"
_RATIO = f"{_ERROR}\nu_c = score_c of the policy - score_c of the reference"
_DPO = f"{_RATIO}\nloss = -log sigmoid(beta * (u of chosen - u of rejected))"
_FLOW_TITLE = "Improving Video Generation with Human Feedback"
_DENSE_TITLE = "DenseDPO: Fine-Grained Temporal Preference Optimization for Video Diffusion Models"

_RWR = Method(
    name="flow_rwr",
    title=_FLOW_TITLE,
    paper="2501.13918",
    year=2025,
    objective="flow_rwr",
    likelihood="elbo",
    reference="none",
    data="lists",
    formula=f"{_ERROR}\nloss = mean over candidates of e^(reward / temperature) * error",
    defaults={
        "video": {"temperature": paper(1.0, "the weight is e^reward, rewards normalised"), **_GENTLE},
    },
    departures=(
        "rewards come with the rows, mean 0 and deviation 1 over the data set: `mmalign data relabel`",
        "weights are bounded at e^20 and not divided by their sum",
    ),
    status="formula",
    taxonomy=Taxonomy(data="listwise", framework="supervised", constraint="none"),
)

_VIDEODPO = Method(
    name="videodpo",
    title="VideoDPO: Omni-Preference Alignment for Video Diffusion Generation",
    paper="2412.14167",
    year=2024,
    objective="videodpo",
    likelihood="elbo",
    formula=f"{_RATIO}\nweight = (p_max / p)^0.72, p = sqrt(p(score of chosen) * p(score of rejected)) in "
    "the histogram of all scores\nloss = weight * -log sigmoid(beta * (u of chosen - u of rejected))",
    defaults={
        **_beta(
            code(5000.0),
            learning_rate=code(6e-6, "the whole network; LoRA takes more"),
            effective_batch=code(8, "on 4 GPUs"),
            steps=code(3000),
            warmup_steps=ours(0, "none in the code"),
            prompt_dropout=code(0.2),
        )
    },
    departures=(
        "one log-sigmoid per pair, as in the paper (released: one per latent column, see videodpo_columns)",
        "weights are a column of the data, pair_weight, made once of all scores by "
        "`mmalign data derive --how rarity` (released config: off; its code: (0.72 / score)^dupbeta)",
        "noise and timestep are shared within the pair (released: drawn for each side; "
        "likelihood.share_noise=false and share_timestep=false are that)",
    ),
)

_STRUCTURAL = Method(
    name="structural_dpo",
    title=_DENSE_TITLE,
    paper="2506.03517",
    year=2025,
    objective="dpo",
    likelihood="elbo",
    formula=f"both sides: one real clip, noised to the same level 0.65 to 0.8, denoised from there\n{_DPO}",
    defaults={
        "video": {
            "beta": paper(1000.0, "500 on whole errors"),
            "share_noise": paper(False, "nearly equal clips under equal noise leave no gradient"),
            "effective_batch": paper(256),
        }
    },
    departures=(
        "pairs are data: the recipe corrupts and denoises real clips before training",
        "the noise level of the corruption is met exactly (the paper counts sampler steps)",
    ),
    needs=frozenset({"reference"}),
)

_GAPO = Method(
    name="gapo_gap_aware",
    title="Aligning Anime Video Generation with Human Feedback",
    paper="2504.10044",
    year=2025,
    objective="gapo_gap_aware",
    likelihood="elbo",
    formula=f"{_RATIO}\nweight = max(0, base^(reward of chosen / scale) - base^(reward of rejected / "
    "scale))\n"
    "loss = weight * -log sigmoid(beta * (u of chosen - u of rejected))",
    defaults={
        **_beta(
            code(5000.0),
            base=code(2.0),
            reward_scale=code(100.0, "rewards from 0 to 100"),
            prompt_dropout=code(0.1),
        )
    },
)

_UNIFIED = Method(
    name="unifiedreward_video_dpo",
    title="Unified Reward Model for Multimodal Understanding and Generation",
    paper="2503.05236",
    year=2025,
    objective="dpo",
    likelihood="elbo",
    formula="pairs: 10 clips per prompt, 5 disjoint comparisons; the best winner against the worst loser\n"
    f"{_DPO}",
    defaults={
        **_beta(
            code(5000.0, "of T2V-Turbo"),
            learning_rate=code(2e-5, "LoRA on all linear layers"),
            warmup_ratio=code(0.2, "of a one-cycle schedule"),
        )
    },
    departures=(
        "scores are compared as numbers, each clip is judged by its own frames, ties make no pair "
        "(released: as text; frames of both; the first clip)",
        "the rate stays constant after the warm-up (released: one cycle; train.schedule=cosine is near it)",
    ),
    needs=frozenset({"reference"}),
    official_code="CodeGoat24/UnifiedReward ff6f520",
)

_UNKNOWN = "numbers of its training: paper read at the level of its method, no code is public"

_REG = Method(
    name="reg_dpo",
    title="Reg-DPO: SFT-Regularized Direct Preference Optimization with GT-Pair for Improving Video "
    "Generation",
    paper="2511.01450",
    year=2025,
    objective="tango2_dpo",
    likelihood="elbo",
    formula=f"chosen: a real clip, rejected: a generated one\n{_DPO} + sft_weight * error of chosen",
    defaults={**_beta(sft_weight=ours(0.1, "not known"))},
    departures=("the objective is Tango 2's: DPO and the error of the chosen side, with a weight",),
    needs=frozenset({"reference"}),
    status="experimental",
    unverified=_UNKNOWN,
    fixes="displacement",
)

_DF = Method(
    name="df_dpo",
    title="Discriminator-Free Direct Preference Optimization for Video Diffusion",
    paper="2504.08542",
    year=2025,
    objective="dpo",
    likelihood="elbo",
    formula=f"chosen: a real clip, rejected: the same clip damaged (reversed, shuffled, noised)\n{_DPO}",
    defaults={**_beta(share_noise=ours(False, "as structural_dpo: sides share most frames"))},
    departures=("damages are data: the recipe makes them before training",),
    needs=frozenset({"reference"}),
    status="experimental",
    unverified=_UNKNOWN,
)

_IPO = Method(
    name="ipo_video",
    title="IPO: Iterative Preference Optimization for Text-to-Video Generation",
    paper="2502.02088",
    year=2025,
    objective="kto",
    likelihood="elbo",
    data="unpaired",
    formula=f"{_RATIO}\nzero_point = max(0, mean of u over the batch), no gradient\n"
    "loss = weight * (1 - sigmoid(+-beta * (u - zero_point))), + for liked clips; a critic likes or dislikes "
    "each sample of the last iteration's model",
    defaults={
        **_beta(
            utility=ours("sigmoid", "as Diffusion-KTO"),
            zero_point=ours("batch", "as Diffusion-KTO"),
            effective_batch=ours(64, "as many clips as 32 pairs have"),
        )
    },
    departures=("one iteration; the next starts from the last model (model.source) on samples of its own",),
    couples_rows=True,
    needs=frozenset({"reference"}),
    status="experimental",
    unverified=_UNKNOWN,
    taxonomy=Taxonomy(data="pointwise"),
    fixes="unpaired",
)

_DYNAMICS = Method(
    name="dynamics_boost",
    title="DynamicsBoost",
    paper="",
    year=2026,
    objective="dpo",
    likelihood="elbo",
    formula="errors are means over the latent frames behind the beginning that both clips share "
    f"(column shared_prefix_frames)\n{_DPO}",
    defaults={**_beta()},
    departures=("a latent frame counts where any of its pictures is not shared",),
    needs=frozenset({"reference", "shared_prefix"}),
    status="experimental",
    unverified=_UNKNOWN,
    taxonomy=Taxonomy(data="pairwise, segment"),
    fixes="credit",
)

ROWS: tuple[Method, ...] = (
    _RWR,
    _VIDEODPO,
    _STRUCTURAL,
    _GAPO,
    _UNIFIED,
    _REG,
    _DF,
    _IPO,
    _DYNAMICS,
)

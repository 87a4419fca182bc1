"""Statistics of evaluations: paired comparisons over prompts, and everything a report may claim from them.

Every result is a frozen record: `print(result)` explains it, `result.as_dict()` stores it. The unit is the
prompt, failed items (NaN) are counted and never averaged, and nothing depends on the order of the items.
"""

from mmalign.evals.statistics.agreement import (
    RULES,
    Agreement,
    TieRule,
    agreement_by,
    pair_agreement,
    pair_credit,
    pair_probability,
    quantile_buckets,
    tie_rule,
)
from mmalign.evals.statistics.bootstrap import (
    Resampling,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_of_means,
    percentile_interval,
    prompt_means,
    resampled_means,
)
from mmalign.evals.statistics.calibration import RewardCalibration, fit_beta, reward_calibration
from mmalign.evals.statistics.corrections import adjust, benjamini_hochberg, holm
from mmalign.evals.statistics.drift import KlEstimate, best_of_n_kl, kl_estimates, path_kl
from mmalign.evals.statistics.elo import EloRatings, elo_ratings, elo_scale, sequential_elo
from mmalign.evals.statistics.games import Games, count_games
from mmalign.evals.statistics.nuisance import ControlledWinRate, controlled_win_rate
from mmalign.evals.statistics.overoptimisation import (
    Overoptimisation,
    overoptimisation_report,
    standardised_gain,
)
from mmalign.evals.statistics.paired_tests import (
    PairedTest,
    effect_size,
    sign_test,
    signed_rank_test,
    standard_error,
)
from mmalign.evals.statistics.power import (
    Power,
    detectable_difference,
    detectable_win_rate,
    power_of,
    power_report,
    required_prompts,
)
from mmalign.evals.statistics.proportions import exact_interval, wilson_interval
from mmalign.evals.statistics.rankings import RankingAgreement, kendall_tau_b, ranking_agreement
from mmalign.evals.statistics.results import Interval, Result
from mmalign.evals.statistics.reward_comparison import RewardComparison, compare_rewards
from mmalign.evals.statistics.strengths import (
    Strengths,
    bradley_terry,
    bradley_terry_games,
    davidson,
    rao_kupper,
)
from mmalign.evals.statistics.thresholds import (
    ThresholdSearch,
    calibrated_thresholds,
    threshold_search,
    videoalign_accuracy_with_ties,
)
from mmalign.evals.statistics.win_rates import MeanDifference, WinRate, mean_difference, outcomes, win_rate

__all__ = [
    "RULES",
    "Agreement",
    "ControlledWinRate",
    "EloRatings",
    "Games",
    "Interval",
    "KlEstimate",
    "MeanDifference",
    "Overoptimisation",
    "PairedTest",
    "Power",
    "RankingAgreement",
    "Resampling",
    "Result",
    "RewardCalibration",
    "RewardComparison",
    "Strengths",
    "ThresholdSearch",
    "TieRule",
    "WinRate",
    "adjust",
    "agreement_by",
    "benjamini_hochberg",
    "best_of_n_kl",
    "bootstrap_mean",
    "bootstrap_median",
    "bootstrap_of_means",
    "bradley_terry",
    "bradley_terry_games",
    "calibrated_thresholds",
    "compare_rewards",
    "controlled_win_rate",
    "count_games",
    "davidson",
    "detectable_difference",
    "detectable_win_rate",
    "effect_size",
    "elo_ratings",
    "elo_scale",
    "exact_interval",
    "fit_beta",
    "holm",
    "kendall_tau_b",
    "kl_estimates",
    "mean_difference",
    "outcomes",
    "overoptimisation_report",
    "pair_agreement",
    "pair_credit",
    "pair_probability",
    "path_kl",
    "percentile_interval",
    "power_of",
    "power_report",
    "prompt_means",
    "quantile_buckets",
    "ranking_agreement",
    "rao_kupper",
    "required_prompts",
    "resampled_means",
    "reward_calibration",
    "sequential_elo",
    "sign_test",
    "signed_rank_test",
    "standard_error",
    "standardised_gain",
    "threshold_search",
    "tie_rule",
    "videoalign_accuracy_with_ties",
    "wilson_interval",
    "win_rate",
]

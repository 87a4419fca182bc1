"""Golden cases: numbers recorded from official implementations, compared through the public interface.

A case is a JSON file with hyperparameters, input tensors and output tensors; some outputs are gradients. An
adapter is a function of a `Case` that calls the public interface and returns the other outputs by name.
`compare` differentiates the adapter's losses itself, so an adapter can forget neither a value nor a gradient.
Adapters contain no formula.

A folder with other values under the same names runs through the same adapters.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain

__all__ = [
    "Adapter",
    "Case",
    "Tolerance",
    "adapter_module",
    "case_names",
    "compare",
    "load_case",
    "tolerance_of",
]


@dataclass(frozen=True)
class Tolerance:
    """Relative tolerances of one comparison."""

    value: float = 1e-9
    gradient: float = 1e-8


_LOOSE = {
    # The source keeps a float32 constant, weight or branch (README of the cases).
    "text_fdpo_alpha": 1e-5,
    "text_orpo": 1e-5,
    "text_bco_pair_delta_mix": 1e-5,
    "text_bco_running_delta": 1e-5,
    "text_d2po_temporal_decay": 1e-6,
    "text_exo_pair": 1e-6,
    "text_ld_dpo_policy_only": 1e-6,
    "text_irpo_incontext_ranking": 1e-6,
    # Integer lengths times a Python float are float32 in the official code.
    "text_length_dpo": 1e-6,
    "text_length_rdpo_minus": 1e-6,
    # The guided logits are float32 in the official code.
    "vdpo_guided_logps": 1e-5,
    # Sources that compute in float32, magnified by a large beta.
    "tango2_dpo": 5e-5,
    "tangoflux_crpo": 5e-5,
    "videodpo": 5e-5,
    "densedpo_formula": 5e-5,
    # Frequencies in float32, times steps up to 999: their last bit is the machine's.
    "eval_step_aware_preference_model": 6e-5,
    # Its features and logits are float32 in the official code.
    "audioldm_eval_metrics": 1e-5,
    # Accuracies recorded in float32.
    "eval_pal_heads": 1e-7,
    # Its source computes in float32 throughout.
    "flow_dpo": 1e-5,
    "gapo": 1e-5,
    "videoreward_losses": 1e-5,
    "vbench_math": 1e-6,
    # Its best temperature was found by a search that stops there; the rest is exact (see test_diagnostics).
    "eval_preference_calibration": 1e-5,
    # The front end's logarithm magnifies rounding near its floor; the waveforms agree to 1e-7.
    "tango_logmel": 1e-3,
    "tango_mix_augmentation": 1e-5,
    "tango_snr_sft": 1e-5,
    # Four networks in float32, after others of older libraries; `_LOOSE_OUTPUTS` has the rest.
    "tango_tiny_model": 2e-4,
    # Its Davidson strengths were fitted by a search that stops there; test_strengths holds the rest to 1e-9.
    "eval_bradley_terry_elo": 1e-6,
}


_LOOSE_OUTPUTS: dict[str, dict[str, float]] = {
    # Of single bins next to nothing, where the official transform is a convolution in float32.
    "tango_logmel": {"log_magnitude_frame_5": 5e-3},
    "tango_tiny_model": {
        "mel": 1e-3,
        "inference_latents": 1e-3,
        "inference_mel": 1e-3,
        # Squares of the gradients of a loss whose logit is a difference of errors, times 1000.
        "dpo_grad_conv_in_weight": 1e-3,
        "dpo_grad_sq_norm_unet": 1e-3,
        "dpo_loss": 1e-4,
    },
}
"""Outputs whose tolerance is not that of their case."""


def tolerance_of(name: str, dtype: torch.dtype = torch.float64) -> Tolerance:
    """The tolerance of a case: 1e-9 and 1e-8 in float64, looser where its source computes in float32."""
    loose = _LOOSE.get(name, 0.0)
    if dtype == torch.float64:
        return Tolerance(max(1e-9, loose), max(1e-8, loose))
    return Tolerance(max(1e-4, loose), max(1e-4, loose))


@dataclass(frozen=True)
class Case:
    """One golden case.

    Args:
        name: file name without suffix.
        hyperparameters: as recorded.
        inputs: tensors by name, leaves that require a gradient when the case records one for them; entries
            that are no numbers stay as the file has them.
        outputs: expected values by name, the same way.
        source: repository, file and commit that made the numbers.
        note: formula, layout and oddities.
    """

    name: str
    hyperparameters: Mapping[str, Any]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    source: str = ""
    note: str = ""

    def __getitem__(self, name: str) -> Any:
        """The input called `name`."""
        return self.inputs[name]

    def gradients(self) -> dict[str, tuple[str, str]]:
        """Gradient outputs as (loss output, input): `grad_x` of `loss`, `grad_x_hinge` of `loss_hinge`."""
        parsed = {name: _parse_gradient(name, self.inputs) for name in self.outputs}
        return {name: found for name, found in parsed.items() if found is not None}


Adapter = Callable[[Case], dict[str, Tensor]]
"""From a case to its outputs by name; losses are differentiable, gradients may be left out."""


def _parse_gradient(name: str, inputs: Mapping[str, Any]) -> tuple[str, str] | None:
    """(Loss output, input) of a gradient output; None when its name follows another rule."""
    rest = name.removeprefix("grad_")
    matching = [given for given in inputs if rest == given or rest.startswith(given + "_")]
    if not name.startswith("grad_") or not matching:
        return None
    given = max(matching, key=len)
    suffix = rest.removeprefix(given)
    return ("loss" + suffix, given)


def _leaves(entry: object) -> list[object]:
    return [leaf for part in entry for leaf in _leaves(part)] if isinstance(entry, list) else [entry]


def _value(entry: Any, dtype: torch.dtype) -> Any:
    """A tensor from `{"shape", "data"}`, a number or nested lists of numbers; anything else as it is."""
    kind, shape = "", None
    if isinstance(entry, dict) and {"shape", "data"} <= entry.keys():
        kind, shape, entry = entry.get("dtype", ""), entry["shape"], entry["data"]
    flat = _leaves(entry)
    if not all(isinstance(leaf, bool | int | float) for leaf in flat):
        return entry
    if kind == "bool" or (flat and all(isinstance(leaf, bool) for leaf in flat)):
        wanted = torch.bool
    elif kind.startswith("int") or (not kind and flat and all(isinstance(leaf, int) for leaf in flat)):
        wanted = torch.int64
    else:
        wanted = dtype
    try:
        value = torch.tensor(entry, dtype=wanted)
    except ValueError:  # ragged
        return entry
    return value if shape is None else value.reshape(shape)


def case_names(folder: Path) -> list[str]:
    """Names of all cases in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load_case(folder: Path, name: str, dtype: torch.dtype = torch.float64) -> Case:
    """The case called `name`, floating tensors in `dtype`."""
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    inputs = {key: _value(entry, dtype) for key, entry in content["inputs"].items()}
    outputs = {key: _value(entry, torch.float64) for key, entry in content["outputs"].items()}
    for key in outputs:
        parsed = _parse_gradient(key, inputs)
        if parsed is not None:
            inputs[parsed[1]].requires_grad_()
    return Case(
        name=name,
        hyperparameters=content["hyperparameters"],
        inputs=inputs,
        outputs=outputs,
        source=content["source"],
        note=content["note"],
    )


def _like(actual: Any, entry: Any) -> Any:
    """An entry of a nested output as a tensor, where the adapter returned one."""
    return _value(entry, torch.float64) if isinstance(actual, Tensor) else entry


def _same(name: str, actual: Any, expected: Any, rtol: float) -> str | None:
    """None when equal, otherwise what differs."""
    if isinstance(expected, Mapping) and isinstance(actual, Mapping) and set(actual) == set(expected):
        parts = [
            _same(f"{name} {key}", part, _like(part, expected[key]), rtol) for key, part in actual.items()
        ]
        return "; ".join(problem for problem in parts if problem) or None
    if isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        pairs = zip(actual, expected, strict=True)
        entries = [_same(f"{name}[{i}]", a, _like(a, e), rtol) for i, (a, e) in enumerate(pairs)]
        return "; ".join(problem for problem in entries if problem) or None
    if isinstance(expected, Mapping) and isinstance(actual, Tensor) and "shape" in expected:
        return _same_digest(name, actual.detach(), expected, rtol)
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        return None if actual == expected else f"{name}: got {actual!r}, expected {expected!r}"
    if actual.shape != expected.shape:
        return f"{name}: got shape {list(actual.shape)}, expected {list(expected.shape)}"
    if not expected.is_floating_point():
        return (
            None
            if torch.equal(actual.to(expected.dtype), expected)
            else f"{name}: got {actual}, expected {expected}"
        )
    actual = actual.detach().to(torch.float64)
    # Entries that cancel to almost nothing are held against the size of the whole tensor, three digits finer.
    # float32 inputs are rounded before anything is computed, so there the whole tensor's size is the measure.
    slack = 1.0 if rtol >= 1e-4 else 1e-3
    finite = expected[torch.isfinite(expected)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    if torch.allclose(actual, expected, rtol=rtol, atol=slack * rtol * scale):
        return None
    worst = float((actual - expected).abs().max())
    return f"{name}: largest difference {worst:.3e} at scale {scale:.3e} (rtol {rtol:g})"


def _same_digest(name: str, actual: Tensor, expected: Mapping[str, Any], rtol: float) -> str | None:
    """As `_same` of a large tensor of which the case keeps shape, sums, extremes and some entries.

    Sums are held against the sum of absolute values: their terms cancel. Integers are 16-bit samples, where
    rounding may go the other way: two steps are allowed.
    """
    if list(actual.shape) != list(expected["shape"]):
        return f"{name}: got shape {list(actual.shape)}, expected {expected['shape']}"
    wide = actual.to(torch.float64).flatten()
    if "first" in expected:
        worst = (wide[: len(expected["first"])] - torch.tensor(expected["first"]).to(wide)).abs().max().item()
        off = abs(wide.sum().item() - expected["sum"])
        return None if worst <= 2 and off <= 2 * len(wide) else f"{name}: samples differ by {worst:g}"
    scale = max(abs(expected["min"]), abs(expected["max"]))
    entries = wide[torch.tensor(expected["flat_indices"])] - torch.tensor(expected["values"]).to(wide)
    found = {
        "entries": (entries.abs().max().item(), scale),
        "min": (wide.min().item() - expected["min"], scale),
        "max": (wide.max().item() - expected["max"], scale),
        "sum": (wide.sum().item() - expected["sum"], expected["abs_sum"]),
        "abs_sum": (wide.abs().sum().item() - expected["abs_sum"], expected["abs_sum"]),
        "sq_sum": ((wide.square().sum().item() - expected["sq_sum"]) / 2, expected["sq_sum"]),
    }
    wrong = [
        f"{part} by {difference:.3e} at scale {size:.3e}"
        for part, (difference, size) in found.items()
        if not abs(difference) <= rtol * size
    ]
    return f"{name}: differs in {', '.join(wrong)} (rtol {rtol:g})" if wrong else None


def compare(
    case: Case,
    results: Mapping[str, Any],
    tolerance: Tolerance,
    *,
    left_out: Mapping[str, str] | None = None,
) -> list[str]:
    """What differs between an adapter's results and a case; an empty list means equal.

    Args:
        case: expected values.
        results: what the adapter returned. Gradients it did not return are computed here from its losses.
        tolerance: relative tolerances.
        left_out: outputs that are not compared, with the reason.
    """
    left_out = left_out or {}
    parsed = case.gradients()
    problems = [f"{name}: is no output of the case" for name in results if name not in case.outputs]
    problems += [
        f"{name}: left out ({left_out[name]}) and yet returned" for name in results if name in left_out
    ]
    for name, expected in case.outputs.items():
        if name in left_out:
            continue
        if name in results:
            found = results[name]
        elif name in parsed and parsed[name][0] in results:
            loss, given = parsed[name]
            (gradient,) = torch.autograd.grad(
                results[loss], case.inputs[given], retain_graph=True, allow_unused=True
            )
            found = torch.zeros_like(case.inputs[given]) if gradient is None else gradient
        else:
            problems.append(f"{name}: the adapter returned neither it nor its loss")
            continue
        rtol = tolerance.gradient if "grad_" in name else tolerance.value
        rtol = max(rtol, _LOOSE_OUTPUTS.get(case.name, {}).get(name, 0.0))
        problem = _same(name, found, expected, rtol)
        if problem:
            problems.append(problem)
    return problems


def adapter_module(path: Path) -> ModuleType:
    """A module beside a test, loaded by path: tests are no package, so it cannot be imported by name."""
    spec = importlib.util.spec_from_file_location(f"parity_{path.stem}", path)
    if spec is None or spec.loader is None:
        message = explain("parity adapters", got=str(path), expected="a Python file")
        raise ConfigError(message)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Every golden case through the public interface: values and gradients."""

from pathlib import Path

import pytest
import torch

from mmalign.testing.parity import adapter_module, case_names, compare, load_case, tolerance_of

HERE = Path(__file__).parent
MODULES = [adapter_module(path) for path in sorted(HERE.glob("adapters_*.py"))]
ADAPTERS = {name: adapter for module in MODULES for name, adapter in module.ADAPTERS.items()}
LEFT_OUT = {name: reasons for module in MODULES for name, reasons in module.LEFT_OUT.items()}

# Case -> the issue whose work makes it expressible. A case leaves this table when it gets its adapter.
NOT_YET: dict[str, int] = {}


def folder(config) -> Path:
    given = config.getoption("parity_dir", default=None)
    return Path(given) if given else HERE / "cases"


def test_case_equals_official_numbers(case_name, pytestconfig):
    if case_name in NOT_YET:
        assert case_name not in ADAPTERS, f"{case_name} has an adapter; take it out of NOT_YET"
        return
    assert case_name in ADAPTERS, f"{case_name} has no adapter and is not in NOT_YET"
    case = load_case(folder(pytestconfig), case_name)
    problems = compare(
        case, ADAPTERS[case_name](case), tolerance_of(case_name), left_out=LEFT_OUT.get(case_name)
    )
    assert not problems, "\n".join([case_name, *problems, case.note])


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_float32_stays_near_the_float64_numbers(name, pytestconfig):
    if not (folder(pytestconfig) / f"{name}.json").exists():
        assert name in case_names(HERE / "cases"), f"adapter {name} names no case"
        return
    case = load_case(folder(pytestconfig), name, torch.float32)
    problems = compare(
        case, ADAPTERS[name](case), tolerance_of(name, torch.float32), left_out=LEFT_OUT.get(name)
    )
    assert not problems, "\n".join([name, *problems])


def test_no_case_has_two_adapters():
    assert len(ADAPTERS) == sum(len(module.ADAPTERS) for module in MODULES)


def test_table_of_missing_methods_is_exact(capsys):
    names = set(case_names(HERE / "cases"))
    assert set(NOT_YET) <= names, f"NOT_YET names no case: {sorted(set(NOT_YET) - names)}"
    assert set(ADAPTERS) <= names, f"adapters without a case: {sorted(set(ADAPTERS) - names)}"
    assert not set(NOT_YET) & set(ADAPTERS), f"adapter and NOT_YET: {sorted(set(NOT_YET) & set(ADAPTERS))}"
    with capsys.disabled():
        remaining = {
            issue: sum(1 for value in NOT_YET.values() if value == issue) for issue in set(NOT_YET.values())
        }
        shown = ", ".join(f"issue {issue}: {count}" for issue, count in sorted(remaining.items()))
        print(f"\nparity: {len(names) - len(NOT_YET)} cases compared, {len(NOT_YET)} remain ({shown})")

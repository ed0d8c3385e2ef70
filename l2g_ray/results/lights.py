"""Traffic lights of a data check: each check green, amber or red by one table of limits, with the numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Level to symbol and word: the colour is never the only sign.
LEVELS = {"green": ("✓", "fine"), "amber": ("!", "look"), "red": ("✕", "problem")}


class Graded:
    """Something with a level, a key of `LEVELS`."""

    level: str

    @property
    def symbol(self) -> str:
        """The level's symbol."""
        return LEVELS[self.level][0]

    @property
    def word(self) -> str:
        """The level's word."""
        return LEVELS[self.level][1]


@dataclass(frozen=True)
class Limit:
    """From `amber` and from `red` on (or below them, with `below`), a value of `measure` has that light."""

    measure: str
    amber: float
    red: float
    below: bool = False
    share: bool = False

    def find_level(self, value: float) -> str:
        """Return green, amber or red."""
        for level, limit in (("red", self.red), ("amber", self.amber)):
            if value < limit if self.below else value >= limit > 0 or value > limit == 0:
                return level
        return "green"

    def describe(self) -> tuple[str, str]:
        """Return the limits of amber and red as text."""
        sign = "below" if self.below else "from"
        return tuple(  # type: ignore[return-value]
            "above 0" if limit == 0 else f"{sign} {limit:.0%}" if self.share else f"{sign} {limit:g}"
            for limit in (self.amber, self.red)
        )


# The limits of amber are those from which the check warns, where it does.
LIMITS: dict[str, Limit] = {
    "Size, train": Limit("training rows", 1000, 100, below=True),
    "Size, test": Limit("test rows", 300, 50, below=True),
    "Balance": Limit("share of the rarest class among training rows", 0.05, 0.01, below=True, share=True),
    "Missing": Limit("share of missing values of an output in train", 0.1, 0.5, share=True),
    "Duplicates": Limit("share of test rows that are also in train", 0, 0.01, share=True),
    "Near-duplicates": Limit("share of test rows with a near-duplicate in train", 0.01, 0.1, share=True),
    "Conflicts": Limit("share of rows whose sequence has different labels", 0, 0.01, share=True),
    "Shortcut, AUROC": Limit("AUROC of length or GC share alone in train", 0.7, 0.9),
    "Shortcut, Spearman": Limit("|Spearman| of length or GC share alone in train", 0.4, 0.7),
    "Label shift": Limit("distance of the labels of train and test", 0.05, 0.2),
    "Length and GC shift": Limit("Kolmogorov-Smirnov statistic of train and test", 0.1, 0.3),
    "Composition": Limit("difference of a letter's share between two classes in train", 0.05, 0.15),
}


@dataclass(frozen=True)
class Light(Graded):
    """One check: its name, its level, and a sentence with what was found."""

    name: str
    level: str
    text: str


def list_lights(check: Mapping[str, Any], dropped: bool = False) -> list[Light]:
    """Return the lights of a data check (`data.check.splits.check_splits`); checks that an earlier version did not
    make are left out.

    `dropped`: training rows that are also in test were dropped before training, so they are no problem.
    """
    looks: tuple[Callable[[Mapping[str, Any]], Iterator[Light]], ...] = (
        _size, _balance, _near, _conflicts, _shortcut, _shift, _composition,
    )  # fmt: skip
    lights = [light for look in looks for light in look(check)] if check else []
    return [*lights[:2], *_duplicates(check, dropped), *lights[2:]] if check else []


def worst_level(levels: Iterator[str] | list[str]) -> str:
    """Return the worst of some levels; green without any."""
    order = list(LEVELS)
    return max(levels, key=order.index, default="green")


def tabulate_limits() -> list[list[str]]:
    """Return a line a limit: what is measured, amber, red."""
    return [[name, limit.measure, *limit.describe()] for name, limit in LIMITS.items()]


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,}{f' ({count / total:.1%})' if count and total else ''}"


def _size(check: Mapping[str, Any]) -> Iterator[Light]:
    rows = check["rows"]
    levels = [LIMITS[f"Size, {split}"].find_level(rows[split]) for split in ("train", "test")]
    yield Light("Size", worst_level(levels), f"{', '.join(f'{n:,} {split}' for split, n in rows.items())} rows.")


def _balance(check: Mapping[str, Any]) -> Iterator[Light]:
    told, kind = check["balance"]["splits"]["train"], check["kind"]
    if kind in ("binary", "multiclass"):
        total = sum(told.values())
        name = min(told, key=lambda label: told[label])
        share = told[name] / total if total else 0.0
        text = f"The rarest class in train is '{name}': {_share(told[name], total)} rows."
        yield Light("Balance", LIMITS["Balance"].find_level(share), text)
        return
    if kind == "multilabel":
        known = {n: min(t["mean"], 1 - t["mean"]) for n, t in told.items() if t["mean"] is not None}
        name = min(known, key=lambda label: known[label], default="")
        if name:
            text = f"The most one-sided label in train is '{name}': {told[name]['mean']:.1%} of its values are 1."
            yield Light("Balance", LIMITS["Balance"].find_level(known[name]), text)
        return
    name = max(told, key=lambda output: told[output]["missing"])
    total = told[name]["missing"] + told[name]["rows"]
    share = told[name]["missing"] / total if total else 1.0
    missing = f"'{name}' lacks {_share(told[name]['missing'], total)} values" if share else "No value is missing"
    yield Light("Balance", LIMITS["Missing"].find_level(share), f"{missing} in train.")


def _duplicates(check: Mapping[str, Any], dropped: bool) -> Iterator[Light]:
    counts, total = check["duplicates"]["train_in_test"], check["rows"]["test"]
    found = counts["other_exact"] + counts["other_reverse_complement"]
    level = LIMITS["Duplicates"].find_level(found / total if total else 0.0)
    text = f"{_share(found, total)} test rows are also in train, on either strand"
    if found and dropped:
        yield Light("Duplicates", "green", f"{text}; these training rows were dropped.")
    else:
        yield Light("Duplicates", level, f"{text}.")


def _near(check: Mapping[str, Any]) -> Iterator[Light]:
    counts, total = (check.get("near") or {}).get("train_in_test"), check["rows"]["test"]
    if counts is None:
        return
    found = counts["other_near_only"]
    level = LIMITS["Near-duplicates"].find_level(found / total if total else 0.0)
    sample = " (of a sample)" if counts["sampled"] else ""
    text = f"{_share(found, total)} test rows have a near-duplicate in train{sample}, similarity {counts['threshold']} or more."
    yield Light("Near-duplicates", level, text)


def _conflicts(check: Mapping[str, Any]) -> Iterator[Light]:
    counts, total = check["conflicts"]["total"], sum(check["rows"].values())
    level = LIMITS["Conflicts"].find_level(counts["rows"] / total if total else 0.0)
    text = f"{_share(counts['rows'], total)} rows share a sequence with a row of another label."
    yield Light("Conflicts", level, text)


def _shortcut(check: Mapping[str, Any]) -> Iterator[Light]:
    for feature, name in (("length_bp", "Length"), ("gc", "GC share")):
        told = check["leak"][feature]
        measure = "AUROC" if told["measure"] == "auroc" else "Spearman"
        if told["value"] is None:
            yield Light(f"{name} shortcut", "green", f"{name} is the same in all training rows.")
            continue
        # Beyond chance only: `leaks` says so.
        level = LIMITS[f"Shortcut, {measure}"].find_level(told["value"]) if told["leaks"] else "green"
        shown = measure if measure == "AUROC" else f"|{measure}|"
        text = f"{name} alone predicts '{told['label']}' with {shown} {told['value']:.2f}."
        yield Light(f"{name} shortcut", level, text)


def _shift(check: Mapping[str, Any]) -> Iterator[Light]:
    found = check["balance"]["distances"]["train_test"]
    level = LIMITS["Label shift"].find_level(found["value"]) if found["large"] else "green"
    levels, parts = [level], []
    if found["value"] is not None:
        parts.append(f"labels {found['value']:.2f}")
    for feature, name in (("length_bp", "length"), ("gc", "GC share")):
        pair = check["shift"][feature]["pairs"]["train_test"]
        if pair["ks"] is not None:
            levels.append(LIMITS["Length and GC shift"].find_level(pair["ks"]) if pair["large"] else "green")
            parts.append(f"{name} {pair['ks']:.2f}")
    if parts:
        yield Light("Shift", worst_level(levels), f"Distance of train and test (0: alike): {', '.join(parts)}.")


def _composition(check: Mapping[str, Any]) -> Iterator[Light]:
    if not check.get("composition"):
        return
    # The first group is all rows.
    groups = dict(list(check["composition"]["splits"]["train"].items())[1:])
    shares = {name: share for name, share in groups.items() if share is not None}
    widest = (0.0, "", "", "")
    for i, letter in enumerate("ACGT"):
        known = {name: share[i] for name, share in shares.items()}
        if known:
            low, high = (pick(known, key=lambda name: known[name]) for pick in (min, max))
            widest = max(widest, (known[high] - known[low], letter, high, low))
    difference, letter, high, low = widest
    level = LIMITS["Composition"].find_level(difference)
    if not difference:
        yield Light("Composition", level, "A, C, G and T have equal shares in all classes of train.")
        return
    text = (
        f"The share of {letter} differs the most: {shares[high]['ACGT'.index(letter)]:.1%} in '{high}', "
        f"{shares[low]['ACGT'.index(letter)]:.1%} in '{low}'."
    )
    yield Light("Composition", level, text)

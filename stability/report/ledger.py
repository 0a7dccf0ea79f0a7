"""The ledger of published reports: every primary claim with its verdict, and one answer drawn from them by rule."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stability import stats
from stability.analysis import ALPHA
from stability.contrasts import contrast
from stability.probes import measures_of, probe
from stability.registry import InputError
from stability.report.model import answer_of
from stability.report.tables import Json
from stability.stats.wording import number

RULE = (
    "A primary claim counts if it compares an arm of the loss siglip with one of the loss clip on a measure of "
    "stability. Steadier means more of a measure of success (such as recall, also under noise), and less of gradient "
    "noise, sharpness relative to its threshold, negative curvature, spikes, spread over seeds, sensitivity to the "
    "learning rate, time to a threshold or divergence. Claims on other measures do not count, nor do claims on the "
    "level of a loss or its rise around a minimum, which cannot be compared across losses and temperatures, on the "
    "cost of a step, or on how a lead changes as batches or data grow.",
    "A claim counts for the arm that it finds steadier if it is supported or contradicted and its adjusted p-value is "
    f"at most {number(ALPHA)}, and for neither arm if it is equivalent within its own margin. Otherwise, or while runs "
    "are missing, it is open.",
    "p-values are adjusted by Benjamini and Hochberg over all primary claims of this page. A decided claim is less "
    "sure if its verdict changes with another method or without one seed, if its effect turns between the cells of "
    "the study, or if it calls equal what never happened or lies below the margin on both sides.",
    "If a study was replicated, its decided claim is shown on more than one data set if a replication on other data "
    "has the same verdict. A claim that is supported on one data set and contradicted on another counts for neither "
    "arm: the answer depends on the data.",
)
"""The rule in words, one point a string: which claims count, for which arm, multiplicity, replications."""

OFFERS = frozenset(measure.needs for variant in probe.values() for measure in variant.traits["measures"])
"""Everything that a measure may need of data: published reports may hold any measure."""

STEADIER_LOW = ("gradient_noise_fraction", "sharpness_ratio", "preconditioned_sharpness", "hessian_negative_share")
"""Heads of the names of measures that are neither good nor bad by themselves, and steadier where they are lower."""

COSTS = frozenset(
    m.name for variant in probe.values() if variant.traits.get("timed") for m in variant.traits["measures"]
)
"""Measures of what a step costs, where less is better and nothing steadier."""

WORDS = {
    "siglip": ("finds SigLIP steadier", "find SigLIP steadier"),
    "clip": ("finds CLIP steadier", "find CLIP steadier"),
    "equal": ("finds them equal within its margin", "find them equal within their margins"),
    "turned": ("comes out the other way on other data", "come out the other way on other data"),
    "open": ("is open", "are open"),
}
"""What each leaning is called, for one claim and for several."""


SCOPE = {
    "elsewhere": "shown on more than one data set",
    "here alone": "on one data set only",
    None: "not asked on other data",
}
"""What is said of decided claims by what other data gave (see `_replicated`)."""


DOUBTS = {
    "fragile": "its verdict changes by another method or without one seed",
    "turned": "its effect turns between the cells of the study",
    "idle": "both sides lie below its margin",
}
"""What is said of a decided claim that its own report doubts (see `_doubts`)."""


def entries(reports: Path) -> list[Json]:
    """Return what the ledger shows of each report under *reports*, by name, p-values adjusted over all of them.

    Raises `InputError` for a findings.json that is not one.
    """
    found = [_entry(path) for path in sorted(reports.glob("*/findings.json"))]
    primary = [entry for entry in found if entry["primary"]]
    adjusted = stats.adjust([entry["p_value"] for entry in primary], "benjamini-hochberg")
    for entry, p in zip(primary, adjusted.tolist(), strict=True):
        entry["p_adjusted"] = None if math.isnan(entry["p_value"]) else _small(p)
        entry["leaning"] = _leaning(entry, p)
    return found


def _small(p: float) -> str:
    """Return a p-value in words; how far one lies below a ten-thousandth tells a reader nothing."""
    return number(p) if p >= 1e-4 else "< 0.0001"


def _entry(path: Path) -> Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        claims, origin = [answer_of(claim) for claim in found["claims"]], found["provenance"]
        raw = next((claim for claim in found["claims"] if claim["primary"]), None)
        return {
            "study": found["study"],
            "title": _title(path.parent) or found["study"],
            "scale": found["scale"],
            "folder": path.parent.name,
            "primary": next((claim for claim in claims if claim["primary"]), None),
            "others": [claim for claim in claims if not claim["primary"]],
            "runs": origin["planned"],
            "interim": origin["finished"] + origin["failed"] < origin["planned"],
            "seeds": origin["seeds"],
            "device": origin["device"]["model"],
            "pdf": (path.parent / "report.pdf").is_file(),
            "p_value": _p_value(raw, found.get("looks")),
            "steadier": steadier(raw, **_asked(path.parent, raw["id"])) if raw else None,
            "leaning": "",
            "agreement": found.get("agreement", {}).get(raw["id"]) if raw else None,
            "replicated": _replicated(raw, found.get("replications", ())) if raw else None,
            "doubts": _doubts(path.parent, raw) if raw else [],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the findings of a report ({type(error).__name__}: {error})") from error


def _replicated(claim: Mapping[str, Any], replications: Sequence[Mapping[str, Any]]) -> str | None:
    """Return whether other data gave a claim's verdict: elsewhere, here alone, turned round, or None if not asked."""
    others = [again for again in replications if again["other_data"] and not again["missing"]]
    verdicts = [each["verdict"] for again in others for each in again["claims"] if each["id"] == claim["id"]]
    if not verdicts:
        return None
    turned = {"supported": "contradicted", "contradicted": "supported"}.get(claim["verdict"])
    return "turned" if turned in verdicts else "elsewhere" if claim["verdict"] in verdicts else "here alone"


def _doubts(folder: Path, claim: Mapping[str, Any]) -> list[str]:
    """Return what its own report says against a claim's verdict: see the last sentence of `RULE`."""
    told: Json = next((each for each in _report(folder).get("answers", ()) if each["id"] == claim["id"]), {})
    doubted = {
        "fragile": not claim.get("sensitivity", {}).get("agrees", True),
        "turned": bool(told.get("turns")),
        "idle": bool(told.get("idle")),
    }
    return [word for word, holds in doubted.items() if holds]


def _p_value(claim: Mapping[str, Any] | None, looks: Mapping[str, Any] | None) -> float:
    """Return a primary claim's p-value, times its registered looks; NaN where nothing was tested."""
    if claim is None or claim["p_value"] is None or claim["verdict"] == "not-testable":
        return math.nan
    return min(1.0, float(claim["p_value"]) * max(1, len((looks or {}).get("seeds", ()))))


def _report(folder: Path) -> Json:
    path = folder / "report.json"
    found: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _title(folder: Path) -> str:
    """Return the study's title, from its report; "" where there is none."""
    return str(_report(folder).get("title", ""))


def _asked(folder: Path, claim: str) -> dict[str, Any]:
    """Return what a published study file says of a claim: the losses of arms that it declares, the axis gone over."""
    study = tomllib.loads(_report(folder).get("study_text", ""))
    losses = {name: arm["loss"] for name, arm in study.get("arms", {}).items() if "loss" in arm}
    axis = next((each.get("axis", "") for each in study.get("claims", ()) if each.get("id") == claim), "")
    return {"losses": losses, "axis": axis}


def steadier(claim: Mapping[str, Any], losses: Mapping[str, str], axis: str = "") -> str | None:
    """Return which of clip and siglip is steadier by a claim's effect; "" if it tells neither, None if off the subject.

    *losses* gives the loss of each arm that does not bear its loss's name, *axis* the axis that the claim goes over.
    """
    arms = [losses.get(arm, arm) for arm in claim["compare"]]
    low = _steadier_low(claim["measure"], claim["contrast"], axis)
    if sorted(arms) != ["clip", "siglip"] or low is None:
        return None
    if claim["effect"] is None:
        return ""
    shift = claim["effect"] - (1.0 if claim["ratio"] else 0.0)
    return "" if shift == 0 else arms[0] if (shift < 0) == low else arms[1]


def _steadier_low(measure: str, how: str, axis: str) -> bool | None:
    """Return whether less of it is steadier; None where neither more nor less is."""
    if axis in ("batch_size", "train_pairs") or measure in COSTS:
        return None
    if how in ("spread", "lr_sensitivity") or (how in contrast and contrast[how].traits["on"] in ("times", "diverged")):
        return True
    known = measures_of(probe, OFFERS).get(measure)
    if measure != "loss" and known and known.better:
        return known.better == "lower"
    return True if measure.startswith(STEADIER_LOW) or (known and known.spikes) else None


def _leaning(entry: Mapping[str, Any], p_adjusted: float) -> str:
    """Return what a primary claim says to the question: siglip, clip, equal, turned, open, or nothing."""
    verdict = entry["primary"]["verdict"]
    if entry["steadier"] is None:
        return ""
    if entry["interim"]:
        return "open"
    if verdict == "equivalent":
        return "equal"
    decided = verdict in ("supported", "contradicted") and p_adjusted <= ALPHA
    if decided and entry["replicated"] == "turned":
        return "turned"
    return entry["steadier"] or "open" if decided else "open"


def coverage(found: Sequence[Mapping[str, Any]], shipped: Collection[str]) -> Json:
    """Return how many of the *shipped* studies have a report among the entries, in a sentence, and which have none.

    >>> coverage([{"study": "noise"}, {"study": "own"}], ["noise", "speed"])
    {'sentence': '1 of 2 shipped studies has a report.', 'missing': ['speed']}
    """
    missing = sorted(set(shipped) - {entry["study"] for entry in found})
    there = len(set(shipped)) - len(missing)
    return {
        "sentence": f"{there} of {len(set(shipped))} shipped studies {'has' if there == 1 else 'have'} a report.",
        "missing": missing,
    }


def answer(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the answer to "is SigLIP more stable than CLIP?" by `RULE`, from the entries of a ledger.

    >>> answer([{"leaning": "siglip", "study": "noise"}, {"leaning": "open", "study": "speed"}])
    'As far as it is decided, yes. Of 2 primary claims that compare them, 1 finds SigLIP steadier (noise) and 1 is open
    (speed).'
    """
    groups = {word: [entry["study"] for entry in found if entry["leaning"] == word] for word in WORDS}
    total = sum(map(len, groups.values()))
    if not total:
        return "Not asked yet: no published study has a primary claim that compares SigLIP with CLIP."
    head = _head({word: len(studies) for word, studies in groups.items()})
    told = {
        word: f"{WORDS[word][len(studies) > 1]} ({', '.join(studies)})" for word, studies in groups.items() if studies
    }
    reach = _reach(found) + _less_sure(found)
    if total == 1:
        return f"{head} The one primary claim that compares them {next(iter(told.values()))}.{reach}"
    *first, last = [f"{len(groups[word])} {words}" for word, words in told.items()]
    counted = f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}" if first else f"all {last}"
    return f"{head} Of {total} primary claims that compare them, {counted}.{reach}"


def _reach(found: Sequence[Mapping[str, Any]]) -> str:
    """Return which decided claims have the same verdict on other data, in a sentence; nothing if none was asked again.

    >>> _reach([{"leaning": "siglip", "study": "noise", "replicated": "elsewhere"},
    ...         {"leaning": "clip", "study": "speed", "replicated": "here alone"}])
    ' Of the decided, shown on more than one data set: noise; on one data set only: speed.'
    """
    decided = [entry for entry in found if entry["leaning"] in ("siglip", "clip", "equal")]
    parts = []
    for found_there, words in SCOPE.items():
        if names := [entry["study"] for entry in decided if entry.get("replicated") == found_there]:
            parts.append(f"{words}: {', '.join(names)}")
    asked = any(entry.get("replicated") for entry in decided)
    return f" Of the decided, {'; '.join(parts)}." if asked else ""


def _less_sure(found: Sequence[Mapping[str, Any]]) -> str:
    """Return which decided claims their own reports doubt, and why, in a sentence; nothing if none.

    >>> _less_sure([{"leaning": "clip", "study": "speed", "doubts": ["fragile"]}])
    ' Less sure: speed (its verdict changes by another method or without one seed).'
    """
    decided = [entry for entry in found if entry["leaning"] in ("siglip", "clip", "equal") and entry.get("doubts")]
    parts = [f"{each['study']} ({', and '.join(DOUBTS[word] for word in each['doubts'])})" for each in decided]
    return f" Less sure: {'; '.join(parts)}." if parts else ""


def _head(count: Mapping[str, int]) -> str:
    if count["turned"]:
        asked = "on what is asked and " if count["siglip"] and count["clip"] else ""
        return f"It depends {asked}on the data."
    if count["siglip"] and count["clip"]:
        return "It depends on what is asked."
    if count["siglip"] or count["clip"]:
        rest = count["equal"] + count["open"]
        yes = "yes" if count["siglip"] else "no, CLIP is the steadier one"
        return f"As far as it is decided, {yes}." if rest else f"{yes[0].upper()}{yes[1:]}."
    if count["equal"]:
        return "No difference that matters is shown." if count["open"] else "No: they are equal within the margins."
    return "Not decided."

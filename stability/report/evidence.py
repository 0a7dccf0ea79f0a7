"""The ledger of published reports: every primary claim with its verdict, and one answer derived from them by `RULE`."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
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
from stability.stats.wording import enumerated, number
from stability.vocabulary import NOT_TESTABLE

RULE = (
    "A primary claim counts if it compares an arm of the loss siglip with one of the loss clip on a measure of "
    "stability. Steadier means more of a measure of success (such as recall, also under noise), and less of gradient "
    "noise, sharpness relative to its threshold, negative curvature, spikes, spread over seeds, sensitivity to the "
    "learning rate, time to a threshold, divergence or collapse, and a higher critical rate. Claims on other measures "
    "do not count, nor do claims on the level of a loss or its rise around a minimum, which cannot be compared across "
    "losses and temperatures, on the cost of a step, or on how a lead changes as batches or data grow.",
    "A claim counts for the arm that it finds steadier if it is supported or contradicted and its adjusted p-value is "
    f"at most {number(ALPHA)}, and for neither arm if it is equivalent within its own margin and a planted difference "
    "was found by the same measure. An equivalence without such a control does not count, since its sensitivity is not "
    "shown. A mixed claim counts for neither arm: the answer depends on a setting. Otherwise, or while runs are "
    "missing, it is open.",
    "p-values are adjusted by Benjamini and Hochberg over all primary claims of this page. A decided claim is less "
    "sure if its verdict changes with another method or without one seed, if its effect turns between the cells of "
    "the study, or if it calls equal what never happened or lies below the margin on both sides.",
    "A claim that was changed or added after the first step of the runs that test it, or whose seeds were changed "
    "after a look at the results, is exploratory and does not count. Claims of reports that were written before this "
    "was recorded count; how many are recorded is said above the table.",
    "If a study was replicated, its decided claim is shown on more than one data set if on other data a replication "
    "has the same verdict, or an effect that differs by less than the margin. A claim whose effect is opposite on "
    "other data, with both intervals excluding no difference, counts for neither arm: the answer depends on the data. "
    "Older reports compare verdicts alone.",
)
"""The rule in words, one point a string: which claims count, for which arm, multiplicity, registration and more."""

OFFERS = frozenset(measure.needs for variant in probe.values() for measure in variant.traits.measures)
"""All data features that measures may need: a published report may use any measure."""

STEADIER_LOW = ("gradient_noise_fraction", "sharpness_ratio", "preconditioned_sharpness", "hessian_negative_share")
"""Name prefixes of measures that have no better direction themselves, but where lower is steadier."""

COSTS = frozenset(m.name for variant in probe.values() if variant.traits.timed for m in variant.traits.measures)
"""Measures of the cost of a step: lower is better, but says nothing about stability."""

WORDS = {
    "siglip": ("finds SigLIP steadier", "find SigLIP steadier"),
    "clip": ("finds CLIP steadier", "find CLIP steadier"),
    "equal": ("finds them equal within its margin", "find them equal within their margins"),
    "unshown": ("is equal with no sensitivity shown", "are equal with no sensitivity shown"),
    "mixed": ("depends on a setting", "depend on a setting"),
    "turned": ("comes out the other way on other data", "come out the other way on other data"),
    "open": ("is open", "are open"),
}
"""The words for each leaning, for one claim and for several."""

SCOPE = {
    "elsewhere": "shown on more than one data set",
    "here alone": "on one data set only",
    None: "not asked on other data",
}
"""The words for a decided claim, by its verdict on other data (see `_replicated`)."""

DOUBTS = {
    "fragile": "its verdict changes by another method or without one seed",
    "turned": "its effect turns between the cells of the study",
    "idle": "both sides lie below its margin",
}
"""The words for a decided claim that its own report doubts (see `_doubts`)."""


def entries(reports: Path) -> list[Json]:
    """Return the ledger's entry for each report under *reports*, sorted by name, with p-values adjusted over all.

    Raises `InputError` if a findings.json is invalid.
    """
    ledger = [_entry(path) for path in sorted(reports.glob("*/findings.json"))]
    primary = [entry for entry in ledger if entry["primary"]]
    adjusted = stats.adjust([entry["p_value"] for entry in primary], "benjamini-hochberg")
    for entry, p in zip(primary, adjusted.tolist(), strict=True):
        entry["p_adjusted"] = None if math.isnan(entry["p_value"]) else _small(p)
        entry["leaning"] = _leaning(entry, p)
    return ledger


def _small(p: float) -> str:
    """Return a p-value as text; values below 0.0001 are not distinguished."""
    return number(p) if p >= 1e-4 else "< 0.0001"


def _entry(path: Path) -> Json:
    try:
        findings = json.loads(path.read_text(encoding="utf-8"))
        claims, origin = [answer_of(claim) for claim in findings["claims"]], findings["provenance"]
        raw = next((claim for claim in findings["claims"] if claim["primary"]), None)
        return {
            "study": findings["study"],
            "title": _title(path.parent) or findings["study"],
            "scale": findings["scale"],
            "folder": path.parent.name,
            "primary": next((claim for claim in claims if claim["primary"]), None),
            "others": [claim for claim in claims if not claim["primary"]],
            "runs": origin["planned"],
            "interim": origin["finished"] + origin["failed"] < origin["planned"],
            "seeds": origin["seeds"],
            "device": origin["device"]["model"],
            "pdf": (path.parent / "report.pdf").is_file(),
            "p_value": _p_value(raw, findings.get("looks")),
            "steadier": steadier(raw, **_definitions(path.parent, raw["id"])) if raw else None,
            "leaning": "",
            "sensitive": bool(raw and raw.get("assay_sensitivity") == "shown"),
            "expects_equal": bool(raw and raw.get("expect") == "equal"),
            "depends_on": raw.get("depends_on", "") if raw else "",
            "agreement": findings.get("agreement", {}).get(raw["id"]) if raw else None,
            "replicated": _replicated(raw, findings) if raw else None,
            "registration": raw.get("registration", "not recorded") if raw else "not recorded",
            "doubts": _doubts(path.parent, raw) if raw else [],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the findings of a report ({type(error).__name__}: {error})") from error


def _replicated(claim: Mapping[str, Any], findings: Mapping[str, Any]) -> str | None:
    """Return a claim's outcome on other data: elsewhere, here alone, turned, or None without a replication there."""
    others = [again for again in findings.get("replications", ()) if again["other_data"] and not again["missing"]]
    verdicts = [other["verdict"] for again in others for other in again["claims"] if other["id"] == claim["id"]]
    if not verdicts:
        return None
    if sites := (findings.get("agreement") or {}).get(claim["id"], {}).get("sites"):
        names = {again["name"] for again in others}
        words = [site["word"] for site in sites if site["name"] in names]
        same = "same" in words or claim["verdict"] in verdicts
        return "turned" if "opposite" in words else "elsewhere" if same else "here alone"
    opposite = {"supported": "contradicted", "contradicted": "supported"}.get(claim["verdict"])
    return "turned" if opposite in verdicts else "elsewhere" if claim["verdict"] in verdicts else "here alone"


def _doubts(folder: Path, claim: Mapping[str, Any]) -> list[str]:
    """Return the keys of `DOUBTS` that its own report raises about a claim's verdict; see the third point of `RULE`."""
    answers = _report(folder).get("answers", ())
    shown: Json = next((entry for entry in answers if entry["id"] == claim["id"]), {})
    doubted = {
        "fragile": not claim.get("sensitivity", {}).get("agrees", True),
        "turned": bool(shown.get("turns")),
        "idle": bool(shown.get("idle")),
    }
    return [word for word, holds in doubted.items() if holds]


def _p_value(claim: Mapping[str, Any] | None, looks: Mapping[str, Any] | None) -> float:
    """Return a primary claim's p-value times the number of its registered looks; NaN if it was not tested."""
    if claim is None or claim["p_value"] is None or claim["verdict"] == NOT_TESTABLE:
        return math.nan
    return min(1.0, float(claim["p_value"]) * max(1, len((looks or {}).get("seeds", ()))))


def _report(folder: Path) -> Json:
    path = folder / "report.json"
    report: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return report


def _title(folder: Path) -> str:
    """Return the study's title from its report; "" if it has none."""
    return str(_report(folder).get("title", ""))


def _definitions(folder: Path, claim: str) -> dict[str, Any]:
    """Return the losses of the declared arms and the axis of a claim, read from the published study file."""
    study = tomllib.loads(_report(folder).get("study_text", ""))
    losses = {name: arm["loss"] for name, arm in study.get("arms", {}).items() if "loss" in arm}
    axis = next((table.get("axis", "") for table in study.get("claims", ()) if table.get("id") == claim), "")
    return {"losses": losses, "axis": axis}


def steadier(claim: Mapping[str, Any], losses: Mapping[str, str], axis: str = "") -> str | None:
    """Return which of clip and siglip is steadier by a claim's effect.

    Args:
        claim: The claim's entry in findings.json.
        losses: The loss of each arm that is not named after its loss.
        axis: The grid axis that the claim's contrast runs over; "" if none.

    Returns:
        "clip" or "siglip"; "" if the effect decides for neither; None if the claim does not compare their stability.
    """
    arms = [losses.get(arm, arm) for arm in claim["compare"]]
    low = _steadier_low(claim["measure"], claim["contrast"], axis)
    if sorted(arms) != ["clip", "siglip"] or low is None:
        return None
    if claim["effect"] is None:
        return ""
    shift = claim["effect"] - (1.0 if claim["ratio"] else 0.0)
    return "" if shift == 0 else arms[0] if (shift < 0) == low else arms[1]


def _steadier_low(measure: str, contrast_name: str, axis: str) -> bool | None:
    """Return whether lower values of a measure are steadier; None if it says nothing about stability."""
    if axis in ("batch_size", "train_pairs") or measure in COSTS:
        return None
    on = contrast[contrast_name].traits.on if contrast_name in contrast else ""
    if contrast_name == "critical_rate":
        return False
    if contrast_name in ("spread", "lr_sensitivity") or on in ("times", "diverged", "collapsed"):
        return True
    definition = measures_of(probe, OFFERS).get(measure)
    if measure != "loss" and definition and definition.better:
        return definition.better == "lower"
    return True if measure.startswith(STEADIER_LOW) or (definition and definition.spikes) else None


def _leaning(entry: Mapping[str, Any], p_adjusted: float) -> str:
    """Return the leaning of a primary claim, a key of `WORDS`, or "" if it does not count."""
    verdict = entry["primary"]["verdict"]
    if entry["steadier"] is None or entry["registration"] == "exploratory":
        return ""
    if entry["interim"]:
        return "open"
    if verdict == ("supported" if entry["expects_equal"] else "equivalent"):
        return "equal" if entry["sensitive"] else "unshown"
    if verdict == "mixed":
        return "mixed"
    decided = verdict in ("supported", "contradicted") and p_adjusted <= ALPHA
    if decided and entry["replicated"] == "turned":
        return "turned"
    return entry["steadier"] or "open" if decided else "open"


def coverage(ledger: Sequence[Mapping[str, Any]], shipped: Collection[str]) -> Json:
    """Return a sentence on how many *shipped* studies have a report among the entries, and the names of the others.

    >>> coverage([{"study": "noise"}, {"study": "own"}], ["noise", "speed"])
    {'sentence': '1 of 2 shipped studies has a report.', 'missing': ['speed']}
    """
    missing = sorted(set(shipped) - {entry["study"] for entry in ledger})
    covered = len(set(shipped)) - len(missing)
    return {
        "sentence": f"{covered} of {len(set(shipped))} shipped studies {'has' if covered == 1 else 'have'} a report.",
        "missing": missing,
    }


def registered(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on how many primary claims are recorded as they stood before the runs.

    >>> registered([{"primary": {}, "registration": word} for word in ("registered", "exploratory", "not recorded")])
    'Of 3, 1 is recorded as it stood before the first step of its runs, 1 is exploratory, and of 1 nothing is recorded.'
    """
    counts = Counter(entry["registration"] for entry in ledger if entry["primary"] is not None)
    before, exploratory, unknown = (counts[word] for word in ("registered", "exploratory", "not recorded"))
    return (
        f"Of {counts.total()}, {before} {'is' if before == 1 else 'are'} recorded as {'it' if before == 1 else 'they'} "
        f"stood before the first step of {'its' if before == 1 else 'their'} runs, {exploratory} "
        f"{'is' if exploratory == 1 else 'are'} exploratory, and of {unknown} nothing is recorded."
    )


def answer(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Return the answer to "is SigLIP more stable than CLIP?" by `RULE`, from the entries of a ledger.

    >>> answer([{"leaning": "siglip", "study": "noise"}, {"leaning": "open", "study": "speed"}])
    'As far as it is decided, yes. Of 2 primary claims that compare them, 1 finds SigLIP steadier (noise) and 1 is open
    (speed).'
    """
    groups = {word: [_named(entry) for entry in ledger if entry["leaning"] == word] for word in WORDS}
    total = sum(map(len, groups.values()))
    if not total:
        return "Not asked yet: no published study has a primary claim that compares SigLIP with CLIP."
    head = _head({word: len(studies) for word, studies in groups.items()})
    phrases = {
        word: f"{WORDS[word][len(studies) > 1]} ({', '.join(studies)})" for word, studies in groups.items() if studies
    }
    reach = _reach(ledger) + _less_sure(ledger)
    if total == 1:
        return f"{head} The one primary claim that compares them {next(iter(phrases.values()))}.{reach}"
    *first, last = [f"{len(groups[word])} {words}" for word, words in phrases.items()]
    counted = f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}" if first else f"all {last}"
    return f"{head} Of {total} primary claims that compare them, {counted}.{reach}"


def _named(entry: Mapping[str, Any]) -> str:
    """Return a study's name, with what its claim depends on if it is mixed."""
    axes = entry.get("depends_on") if entry["leaning"] == "mixed" else ""
    return f"{entry['study']} on the {axes}" if axes else str(entry["study"])


def _reach(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on which decided claims have the same verdict on other data; "" if none was replicated.

    >>> _reach([{"leaning": "siglip", "study": "noise", "replicated": "elsewhere"},
    ...         {"leaning": "clip", "study": "speed", "replicated": "here alone"}])
    ' Of the decided, shown on more than one data set: noise; on one data set only: speed.'
    """
    decided = [entry for entry in ledger if entry["leaning"] in ("siglip", "clip", "equal")]
    parts = []
    for scope, words in SCOPE.items():
        if names := [entry["study"] for entry in decided if entry.get("replicated") == scope]:
            parts.append(f"{words}: {', '.join(names)}")
    replicated = any(entry.get("replicated") for entry in decided)
    return f" Of the decided, {'; '.join(parts)}." if replicated else ""


def _less_sure(ledger: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on which decided claims their own reports doubt, and why; "" if none.

    >>> _less_sure([{"leaning": "clip", "study": "speed", "doubts": ["fragile"]}])
    ' Less sure: speed (its verdict changes by another method or without one seed).'
    """
    decided = [entry for entry in ledger if entry["leaning"] in ("siglip", "clip", "equal") and entry.get("doubts")]
    parts = [f"{entry['study']} ({', and '.join(DOUBTS[word] for word in entry['doubts'])})" for entry in decided]
    return f" Less sure: {'; '.join(parts)}." if parts else ""


def _head(count: Mapping[str, int]) -> str:
    depends = {
        "on what is asked": count["siglip"] and count["clip"],
        "on the setting": count["mixed"],
        "on the data": count["turned"],
    }
    if any(depends.values()):
        return f"It depends {enumerated([words for words, holds in depends.items() if holds])}."
    if count["siglip"] or count["clip"]:
        rest = count["equal"] + count["unshown"] + count["open"]
        yes = "yes" if count["siglip"] else "no, CLIP is the steadier one"
        return f"As far as it is decided, {yes}." if rest else f"{yes[0].upper()}{yes[1:]}."
    if count["equal"]:
        return (
            "No difference that matters is shown."
            if count["open"] + count["unshown"]
            else "No: they are equal within the margins."
        )
    return "Not decided."

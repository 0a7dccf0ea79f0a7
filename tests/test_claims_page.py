"""The page that maps sentences to claims names claims that exist, and every study has a place on it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/claims.md").read_text(encoding="utf-8")


def written() -> dict[str, set[str]]:
    studies = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "studies").glob("*.toml")}
    return {name: {claim["id"] for claim in study.get("claims", [])} for name, study in studies.items()}


def test_every_claim_on_the_page_is_in_its_study():
    named = re.findall(r"`([a-z-]+): ([a-z0-9-]+)`", PAGE)
    assert len(named) > 40
    claims = written()
    assert [(study, claim) for study, claim in named if claim not in claims.get(study, set())] == []


def test_every_claim_of_every_study_is_on_the_page():
    named = set(re.findall(r"`([a-z-]+): ([a-z0-9-]+)`", PAGE))
    assert {(study, claim) for study, claims in written().items() for claim in claims} - named == set()
